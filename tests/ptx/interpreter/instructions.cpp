//! \file instructions.cpp
//! The decoder's part that knows instructions.
#include <algorithm>

#include "decoder.h"
#include "operations.h"

namespace ptx
{

namespace
{

Statement statementFrom(std::string const& text)
{
    Statement statement;
    size_t const space = text.find_first_of(" \t");
    statement.opcode = text.substr(0, space);
    statement.operands = splitAtCommas(space == std::string::npos ? "" : text.substr(space));
    size_t start = 0;
    while (start != std::string::npos)
    {
        size_t const dot = statement.opcode.find('.', start);
        statement.parts.push_back(statement.opcode.substr(start, dot == std::string::npos ? dot : dot - start));
        start = dot == std::string::npos ? dot : dot + 1;
    }
    return statement;
}

} // namespace

bool Statement::has(char const* part) const
{
    return std::find(parts.begin(), parts.end(), part) != parts.end();
}

void Decoder::addInstruction(std::string const& text)
{
    Instruction instruction;
    instruction.line = mLine;
    instruction.text = text;
    std::string body = text;
    if (text[0] == '@')
    {
        size_t const space = text.find_first_of(" \t");
        instruction.isGuarded = true;
        instruction.isGuardNegated = text[1] == '!';
        size_t const name = instruction.isGuardNegated ? 2 : 1;
        instruction.guard = operand(text.substr(name, space - name), Width::kPREDICATE);
        body = trimmed(text.substr(space));
    }
    Statement const statement = statementFrom(body);
    if (statement.opcode == "bra" || statement.opcode == "bra.uni")
    {
        instruction.flow = Flow::kBRANCH;
        mBranches.emplace_back(mKernel.code.size(), statement.operands.at(0));
    }
    else if (statement.opcode == "ret" || statement.opcode == "exit")
    {
        instruction.flow = Flow::kEXIT;
    }
    else
    {
        decode(instruction, statement);
    }
    mKernel.code.push_back(instruction);
}

void Decoder::decode(Instruction& instruction, Statement const& statement)
{
    std::string const& name = statement.parts[0];
    if (name == "bar" || name == "barrier")
    {
        decodeBarrier(instruction, statement);
    }
    else if (name == "ld" || name == "st")
    {
        decodeMemory(instruction, statement);
    }
    else if (name == "cp")
    {
        decodeCopy(instruction, statement);
    }
    else if (name == "shfl")
    {
        decodeShuffle(instruction, statement);
    }
    else if (statement.opcode == "vote.sync.ballot.b32")
    {
        instruction.flow = Flow::kWARP_SYNC;
        instruction.operation = ballot;
        instruction.result = operand(statement.operands.at(0), Width::k32);
        instruction.operands[0] = operand(statement.operands.at(1), Width::kPREDICATE);
        instruction.members = operand(statement.operands.at(2), Width::k32);
    }
    else if (statement.opcode == "match.any.sync.b32" || statement.opcode == "redux.sync.add.s32")
    {
        instruction.flow = Flow::kWARP_SYNC;
        instruction.operation = name == "match" ? matchAny : addLanes;
        instruction.result = operand(statement.operands.at(0), Width::k32);
        instruction.operands[0] = operand(statement.operands.at(1), Width::k32);
        instruction.members = operand(statement.operands.at(2), Width::k32);
    }
    else if (name == "ldmatrix")
    {
        decodeMatrices(instruction, statement);
    }
    else if (name == "mma")
    {
        decodeProduct(instruction, statement);
    }
    else if (name == "mov" && (statement.operands.at(0)[0] == '{' || statement.operands.at(1)[0] == '{'))
    {
        decodePacking(instruction, statement);
    }
    else
    {
        decodeForm(instruction, statement);
    }
}

void Decoder::decodeBarrier(Instruction& instruction, Statement const& statement)
{
    std::vector<std::string> const& operands = statement.operands;
    if (statement.opcode == "bar.warp.sync")
    {
        instruction.flow = Flow::kWARP_SYNC;
        instruction.operation = doNothing;
        instruction.ordersMemory = true;
        instruction.members = operand(operands.at(0), Width::k32);
        return;
    }
    instruction.flow = Flow::kBLOCK_SYNC;
    instruction.isReduction = statement.has("red");
    bool const isAny = statement.has("or") && statement.has("pred") && operands.size() == 3 && operands[1] == "0";
    bool const isPlain = operands.size() == 1 && operands[0] == "0";
    if (!(instruction.isReduction ? isAny : isPlain))
    {
        fail("unknown barrier: " + instruction.text);
    }
    if (instruction.isReduction)
    {
        instruction.result = operand(operands[0], Width::kPREDICATE);
        instruction.operands[0] = operand(operands[2], Width::kPREDICATE);
    }
}

void Decoder::decodeMemory(Instruction& instruction, Statement const& statement)
{
    bool const isStore = statement.parts[0] == "st";
    std::string const& type = statement.parts.back();
    instruction.elementBytes = static_cast<uint8_t>(bytesOfType(type));
    instruction.isSigned = type[0] == 's';
    std::vector<std::string> const registers = group(statement.operands.at(isStore ? 1 : 0));
    instruction.elements = static_cast<uint8_t>(registers.size());
    size_t const expected = statement.has("v4") ? 4 : statement.has("v2") ? 2 : 1;
    if (registers.size() != expected || statement.has("volatile") || statement.has("acquire"))
    {
        fail("unknown access: " + instruction.text);
    }
    Width const width = instruction.elementBytes == 8 ? Width::k64 : Width::k32;
    instruction.isWide = width == Width::k64;
    for (size_t i = 0; i < registers.size(); ++i)
    {
        instruction.group[i] = operand(registers[i], width);
        if (registers[i][0] == '%' && specialRegister(registers[i]) == nullptr)
        {
            instruction.isWide = registerNamed(registers[i]).width == Width::k64;
        }
    }
    Width const addressWidth = statement.has("shared") ? Width::k32 : Width::k64;
    instruction.address = address(statement.operands.at(isStore ? 0 : 1), addressWidth);
    instruction.operation = statement.has("shared") ? (isStore ? storeShared : loadShared)
        : statement.has("global")                   ? (isStore ? storeGlobal : loadGlobal)
        : statement.has("param") && !isStore        ? loadParameter
                                                    : nullptr;
    if (instruction.operation == nullptr)
    {
        fail("unknown memory: " + instruction.text);
    }
}

void Decoder::decodeCopy(Instruction& instruction, Statement const& statement)
{
    if (statement.opcode == "cp.async.wait_all")
    {
        instruction.operation = waitForCopies;
        return;
    }
    if (statement.opcode != "cp.async.cg.shared.global" || statement.operands.size() != 4
        || statement.operands[2] != "16")
    {
        fail("unknown copy: " + instruction.text);
    }
    instruction.operation = copyAsync;
    instruction.address = address(statement.operands[0], Width::k32);
    instruction.source = address(statement.operands[1], Width::k64);
    instruction.operands[0] = operand(statement.operands[3], Width::k32);
}

void Decoder::decodeShuffle(Instruction& instruction, Statement const& statement)
{
    instruction.flow = Flow::kWARP_SYNC;
    instruction.operation = shuffle;
    std::string const& results = statement.operands.at(0);
    size_t const bar = results.find('|');
    instruction.result = operand(trimmed(results.substr(0, bar)), Width::k32);
    if (bar != std::string::npos)
    {
        instruction.secondResult = operand(trimmed(results.substr(bar + 1)), Width::kPREDICATE);
    }
    for (size_t i = 0; i < 3; ++i)
    {
        instruction.operands[i] = operand(statement.operands.at(1 + i), Width::k32);
    }
    instruction.members = operand(statement.operands.at(4), Width::k32);
    instruction.variant = statement.has("up") ? kUP
        : statement.has("down")               ? kDOWN
        : statement.has("bfly")               ? kXOR
                                              : kINDEX;
}

void Decoder::decodeMatrices(Instruction& instruction, Statement const& statement)
{
    bool const isTransposed = statement.has("trans");
    std::string const opcode
        = isTransposed ? "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16" : "ldmatrix.sync.aligned.m8n8.x4.shared.b16";
    std::vector<std::string> const registers = group(statement.operands.at(0));
    if (statement.opcode != opcode || registers.size() != 4)
    {
        fail("unknown matrices: " + instruction.text);
    }
    instruction.flow = Flow::kWARP_SYNC;
    instruction.operation = isTransposed ? loadMatricesTransposed : loadMatrices;
    instruction.members = constant(Width::k32, kALL_LANES);
    instruction.address = address(statement.operands.at(1), Width::k32);
    for (size_t i = 0; i < registers.size(); ++i)
    {
        instruction.group[i] = operand(registers[i], Width::k32);
    }
}

void Decoder::decodeProduct(Instruction& instruction, Statement const& statement)
{
    instruction.flow = Flow::kWARP_SYNC;
    instruction.members = constant(Width::k32, kALL_LANES);
    instruction.operation = statement.opcode == "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
        ? multiplyHalfMatrices
        : statement.opcode == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" ? multiplyBFloat16Matrices
                                                                                    : nullptr;
    std::vector<std::string> registers;
    for (std::string const& matrix : statement.operands)
    {
        for (std::string const& name : group(matrix))
        {
            registers.push_back(name);
        }
    }
    if (instruction.operation == nullptr || registers.size() != std::size(instruction.group))
    {
        fail("unknown product: " + instruction.text);
    }
    for (size_t i = 0; i < registers.size(); ++i)
    {
        instruction.group[i] = operand(registers[i], Width::k32);
    }
}

//! Two registers in one of twice their width, or back.
void Decoder::decodePacking(Instruction& instruction, Statement const& statement)
{
    bool const isPacked = statement.operands.at(1)[0] == '{';
    bool const isWide = statement.opcode == "mov.b64";
    std::vector<std::string> const registers = group(statement.operands[isPacked ? 1 : 0]);
    if ((statement.opcode != "mov.b32" && !isWide) || registers.size() != 2)
    {
        fail("unknown packing: " + instruction.text);
    }
    instruction.group[0] = operand(registers[0], Width::k32);
    instruction.group[1] = operand(registers[1], Width::k32);
    Slot const whole = operand(statement.operands[isPacked ? 0 : 1], isWide ? Width::k64 : Width::k32);
    (isPacked ? instruction.result : instruction.operands[0]) = whole;
    instruction.operation = isPacked ? (isWide ? pack32 : pack16) : (isWide ? unpack32 : unpack16);
}

void Decoder::decodeForm(Instruction& instruction, Statement const& statement)
{
    // An operand may be wider than its type, of which it then has the lower half.
    std::string const& last = statement.operands.back();
    bool const isNarrowed = statement.opcode == "cvt.s64.s32" && last[0] == '%' && specialRegister(last) == nullptr
        && registerNamed(last).width == Width::k64;
    Form const* const form = formOf(isNarrowed ? "cvt.s64.s32 of 64 bits" : statement.opcode);
    if (form == nullptr || statement.operands.size() != form->operands.size() + 1)
    {
        fail("unknown instruction: " + instruction.text);
    }
    for (size_t i = 0; i < form->operands.size(); ++i)
    {
        std::string const& name = statement.operands[i + 1];
        bool const isRegister = name[0] == '%' && specialRegister(name) == nullptr;
        if (isRegister && registerNamed(name).width != form->operands[i])
        {
            fail("a register of another width: " + instruction.text);
        }
    }
    instruction.operation = form->operation;
    instruction.result = operand(statement.operands[0], form->result);
    for (size_t i = 0; i < form->operands.size(); ++i)
    {
        instruction.operands[i] = operand(statement.operands[i + 1], form->operands[i]);
    }
}

} // namespace ptx
