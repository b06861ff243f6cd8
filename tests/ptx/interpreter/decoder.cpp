//! \file decoder.cpp
//! Structure of a kernel's text: scopes, registers, labels, operands.
#include "decoder.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>

#include "operations.h"

namespace ptx
{

namespace
{

//! Modules are loaded before main().
std::map<std::string, std::unique_ptr<Kernel>>& kernels()
{
    static std::map<std::string, std::unique_ptr<Kernel>> all;
    return all;
}

bool startsWith(std::string const& text, char const* start)
{
    return text.rfind(start, 0) == 0;
}

bool isNumber(std::string const& text)
{
    size_t const first = !text.empty() && text[0] == '-' ? 1 : 0;
    return text.size() > first && isdigit(text[first]) != 0;
}

//! Decimal, 0x..., or the bits of a float, 0f...
uint64_t numberFrom(std::string const& text)
{
    if (text.size() > 2 && text[0] == '0' && tolower(text[1]) == 'f')
    {
        return strtoull(text.c_str() + 2, nullptr, 16);
    }
    if (text[0] == '-')
    {
        return 0 - strtoull(text.c_str() + 1, nullptr, 0);
    }
    return strtoull(text.c_str(), nullptr, 0);
}

Width widthOfType(std::string const& type)
{
    uint32_t const bytes = bytesOfType(type);
    return bytes == 0 ? Width::kPREDICATE : bytes == 8 ? Width::k64 : Width::k32;
}

uint32_t roundedUp(uint32_t number, uint32_t multiple)
{
    return (number + multiple - 1) / multiple * multiple;
}

} // namespace

std::string trimmed(std::string const& text)
{
    constexpr char const* kSPACE{" \t\r\n"};
    size_t const first = text.find_first_not_of(kSPACE);
    return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(kSPACE) - first + 1);
}

std::vector<std::string> splitAtCommas(std::string const& text)
{
    std::vector<std::string> parts;
    int32_t depth = 0;
    std::string part;
    for (char const character : text)
    {
        depth += character == '{' || character == '[' || character == '(' ? 1 : 0;
        depth -= character == '}' || character == ']' || character == ')' ? 1 : 0;
        if (character == ',' && depth == 0)
        {
            parts.push_back(trimmed(part));
            part.clear();
        }
        else
        {
            part += character;
        }
    }
    if (!trimmed(part).empty())
    {
        parts.push_back(trimmed(part));
    }
    return parts;
}

uint32_t bytesOfType(std::string const& type)
{
    if (type == "pred")
    {
        return 0;
    }
    size_t const digits = type == "bf16" ? 2 : type.find_first_of("0123456789");
    return digits == std::string::npos ? 0 : static_cast<uint32_t>(atoi(type.c_str() + digits)) / 8;
}

Decoder::Decoder(Kernel& kernel)
    : mKernel(kernel)
{
}

void Decoder::fail(std::string const& what) const
{
    throw std::runtime_error(mKernel.name + " line " + std::to_string(mLine) + ": " + what);
}

void Decoder::addParameters(std::string const& text)
{
    for (std::string const& parameter : splitAtCommas(text))
    {
        unsigned alignment = 0;
        unsigned bytes = 0;
        char name[1024];
        char type[32];
        if (sscanf(parameter.c_str(), ".param .align %u .b8 %1023[^[][%u]", &alignment, name, &bytes) != 3)
        {
            // ".param .u64 .ptr .align 1 name" since CUDA 13, ".param .u64 name" before
            if (sscanf(parameter.c_str(), ".param .%31s .ptr .align %u %1023s", type, &alignment, name) != 3
                && (sscanf(parameter.c_str(), ".param .%31s %1023s", type, name) != 2 || name[0] == '.'))
            {
                fail("unknown parameter: " + parameter);
            }
            bytes = alignment = bytesOfType(type);
        }
        uint32_t const offset = roundedUp(mKernel.parameterBytes, alignment);
        mKernel.parameters.push_back({name, offset, bytes});
        mSymbols[name] = offset;
        mKernel.parameterBytes = offset + bytes;
    }
}

size_t Decoder::addBody(std::string const& text, size_t start)
{
    mLine = 1 + static_cast<uint32_t>(std::count(text.begin(), text.begin() + static_cast<int64_t>(start), '\n'));
    mScopes.emplace_back();
    std::string statement;
    int32_t depth = 0; // of braces within the statement
    for (size_t i = start; i < text.size(); ++i)
    {
        char const character = text[i];
        mLine += character == '\n' ? 1U : 0U;
        bool const isFresh = trimmed(statement).empty();
        if (character == '/' && text[i + 1] == '/')
        {
            i = text.find('\n', i);
            ++mLine;
        }
        else if (character == '{' && isFresh)
        {
            mScopes.emplace_back();
        }
        else if (character == '}' && isFresh)
        {
            mScopes.pop_back();
            if (mScopes.empty())
            {
                findFusable();
                return i + 1;
            }
        }
        else if (character == ':' && startsWith(trimmed(statement), "$"))
        {
            mLabels[trimmed(statement)] = static_cast<int32_t>(mKernel.code.size());
            statement.clear();
        }
        else if (character == ';' && depth == 0)
        {
            addStatement(trimmed(statement));
            statement.clear();
        }
        else
        {
            depth += character == '{' ? 1 : character == '}' ? -1 : 0;
            statement += character;
        }
    }
    fail("the text ends within the kernel");
}

void Decoder::addStatement(std::string const& text)
{
    if (startsWith(text, "."))
    {
        addDirective(text);
    }
    else if (!text.empty())
    {
        addInstruction(text);
    }
}

void Decoder::addDirective(std::string const& text)
{
    unsigned alignment = 0;
    unsigned bytes = 0;
    char name[1024];
    if (startsWith(text, ".reg"))
    {
        addRegisters(text);
    }
    else if (sscanf(text.c_str(), ".shared .align %u .b8 %1023[^[][%u]", &alignment, name, &bytes) == 3)
    {
        uint32_t const offset = roundedUp(mKernel.sharedBytes, alignment);
        mSymbols[name] = kSHARED_BASE + offset;
        mKernel.sharedBytes = offset + bytes;
    }
    else if (!startsWith(text, ".pragma") && !startsWith(text, ".loc"))
    {
        fail("unknown directive: " + text);
    }
}

void Decoder::addRegisters(std::string const& text)
{
    char type[32];
    int32_t start = 0;
    if (sscanf(text.c_str(), ".reg .%31s %n", type, &start) != 1)
    {
        fail("unknown registers: " + text);
    }
    for (std::string const& name : splitAtCommas(text.substr(static_cast<size_t>(start))))
    {
        size_t const count = name.find('<');
        auto& names = count == std::string::npos ? mScopes.back().names : mScopes.back().prefixes;
        names[trimmed(name.substr(0, count))] = widthOfType(type);
    }
}

Slot Decoder::newSlot(Width width)
{
    constexpr uint32_t kALIGNMENT{64};
    Slot const slot = mKernel.registerBytes;
    mKernel.registerBytes += width == Width::kPREDICATE ? kALIGNMENT : width == Width::k64 ? 256 : 128;
    return slot;
}

Decoder::Register Decoder::registerNamed(std::string const& name)
{
    size_t digits = name.size();
    while (digits > 0 && isdigit(name[digits - 1]) != 0)
    {
        --digits;
    }
    for (auto scope = mScopes.rbegin(); scope != mScopes.rend(); ++scope)
    {
        if (auto const known = scope->registers.find(name); known != scope->registers.end())
        {
            return known->second;
        }
        auto const declared = scope->names.find(name);
        auto const counted = scope->prefixes.find(name.substr(0, digits));
        bool const isCounted = digits < name.size() && counted != scope->prefixes.end();
        if (declared != scope->names.end() || isCounted)
        {
            Width const width = declared != scope->names.end() ? declared->second : counted->second;
            return scope->registers[name] = {newSlot(width), width};
        }
    }
    fail("unknown register " + name);
}

Slot Decoder::constant(Width width, uint64_t bits)
{
    bits &= width == Width::k64 ? ~uint64_t{0} : 0xffffffffU;
    auto const [entry, isNew] = mConstants.insert({{width, bits}, 0});
    if (isNew)
    {
        entry->second = newSlot(width == Width::kPREDICATE ? Width::k32 : width);
        mKernel.constants.push_back({entry->second, width == Width::k64, bits});
    }
    return entry->second;
}

Slot* Decoder::specialRegister(std::string const& name)
{
    SpecialRegisters& special = mKernel.special;
    std::pair<char const*, Slot*> const families[] = {{"%tid.", special.threadIndex}, {"%ctaid.", special.blockIndex},
        {"%ntid.", special.blockSize}, {"%nctaid.", special.gridSize}};
    for (auto const& [start, slots] : families)
    {
        if (startsWith(name, start))
        {
            return slots + (name.back() - 'x');
        }
    }
    return name == "%laneid" ? &special.lane : name == "%lanemask_lt" ? &special.lanesBefore : nullptr;
}

//! The slot of a number, an address, a special register or a register. `width` is that of a number.
Slot Decoder::operand(std::string const& text, Width width)
{
    if (isNumber(text))
    {
        uint64_t const number = numberFrom(text);
        return constant(width, width == Width::kPREDICATE && number != 0 ? kALL_LANES : number);
    }
    if (auto const symbol = mSymbols.find(text); symbol != mSymbols.end())
    {
        return constant(width, symbol->second);
    }
    if (Slot* const special = specialRegister(text))
    {
        *special = *special == 0 ? newSlot(Width::k32) : *special;
        return *special;
    }
    return registerNamed(text).slot;
}

//! "[base + offset]"; `width` is that of an address without a register.
Address Decoder::address(std::string const& text, Width width)
{
    if (text.size() < 3 || text.front() != '[' || text.back() != ']')
    {
        fail("expected an address: " + text);
    }
    std::string const inside = trimmed(text.substr(1, text.size() - 2));
    size_t const plus = inside.find('+');
    std::string const base = trimmed(inside.substr(0, plus));
    bool const isRegister = startsWith(base, "%");
    Address result;
    result.base = operand(base, width);
    result.isWide = (isRegister ? registerNamed(base).width : width) == Width::k64;
    result.offset = plus == std::string::npos ? 0 : static_cast<int64_t>(numberFrom(trimmed(inside.substr(plus + 1))));
    return result;
}

std::vector<std::string> Decoder::group(std::string const& text) const
{
    return text[0] == '{' ? splitAtCommas(text.substr(1, text.size() - 2)) : std::vector<std::string>{text};
}

//! ptxas may make one operation of an unrounded product and an unrounded sum: finds where, within basic blocks.
void Decoder::findFusable()
{
    for (auto const& [index, label] : mBranches)
    {
        auto const target = mLabels.find(label);
        if (target == mLabels.end())
        {
            fail("unknown label " + label);
        }
        mKernel.code[index].target = target->second;
    }
    std::vector<bool> isTarget(mKernel.code.size() + 1, false);
    for (auto const& [label, index] : mLabels)
    {
        isTarget[static_cast<size_t>(index)] = true;
    }
    std::map<Slot, Instruction const*> products;
    for (size_t i = 0; i < mKernel.code.size(); ++i)
    {
        Instruction& instruction = mKernel.code[i];
        if (isTarget[i] || instruction.flow != Flow::kNEXT)
        {
            products.clear();
        }
        bool const isDifference = startsWith(instruction.text, "sub.f32");
        for (uint8_t side = 0; side < 2 && (isDifference || startsWith(instruction.text, "add.f32")); ++side)
        {
            if (auto const product = products.find(instruction.operands[side]); product != products.end())
            {
                instruction.operands[2] = product->second->operands[0];
                instruction.operands[3] = product->second->operands[1];
                instruction.variant
                    = static_cast<uint8_t>((side == 1 ? kPRODUCT_IS_SECOND : 0) | (isDifference ? kIS_DIFFERENCE : 0));
                instruction.operation = addMaybeFused;
                break;
            }
        }
        // A product ends with its register or its factors.
        for (auto product = products.begin(); product != products.end();)
        {
            Slot const(&factors)[4] = product->second->operands;
            bool const isOver = product->first == instruction.result || factors[0] == instruction.result
                || factors[1] == instruction.result;
            product = isOver ? products.erase(product) : std::next(product);
        }
        if (startsWith(instruction.text, "mul.f32"))
        {
            products[instruction.result] = &instruction;
        }
    }
}

void loadModule(std::string const& text)
{
    size_t place = 0;
    while ((place = text.find(".entry", place)) != std::string::npos)
    {
        size_t const open = text.find('(', place);
        size_t const close = text[open + 1] == ')' ? open + 1 : text.find("\n)", open);
        size_t const brace = text.find('{', close);
        auto kernel = std::make_unique<Kernel>();
        kernel->name = trimmed(text.substr(place + 6, open - place - 6));
        std::string const head = text.substr(close, brace - close);
        if (size_t const limit = head.find(".maxntid"); limit != std::string::npos)
        {
            kernel->maxThreads = static_cast<uint32_t>(atoi(head.c_str() + limit + 8));
        }
        Decoder decoder(*kernel);
        decoder.addParameters(text.substr(open + 1, close - open - 1));
        place = decoder.addBody(text, brace + 1);
        kernel->executed.assign(kernel->code.size(), 0);
        kernels()[kernel->name] = std::move(kernel);
    }
}

Kernel* findKernel(std::string const& name)
{
    auto const entry = kernels().find(name);
    return entry == kernels().end() ? nullptr : entry->second.get();
}

std::vector<Kernel*> allKernels()
{
    std::vector<Kernel*> all;
    for (auto const& [name, kernel] : kernels())
    {
        all.push_back(kernel.get());
    }
    return all;
}

} // namespace ptx
