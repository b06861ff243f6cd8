//! \file decoder.h
//! From the text of one kernel to instructions.
#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "forms.h"
#include "kernel.h"

namespace ptx
{

//! Without spaces and line ends around it.
std::string trimmed(std::string const& text);

//! At commas outside of braces, brackets and parentheses.
std::vector<std::string> splitAtCommas(std::string const& text);

//! Bytes of a type such as "f32"; 0 for predicates.
uint32_t bytesOfType(std::string const& type);

//! The parts of an instruction.
struct Statement
{
    std::string opcode;
    std::vector<std::string> parts; //!< of the opcode, between its dots
    std::vector<std::string> operands;

    bool has(char const* part) const;
};

class Decoder
{
public:
    explicit Decoder(Kernel& kernel);

    //! Parameters of the kernel: "(...)" of its head.
    void addParameters(std::string const& text);

    //! Decodes from behind the opening brace to behind the closing one; returns the place there.
    size_t addBody(std::string const& text, size_t start);

private:
    struct Register
    {
        Slot slot;
        Width width;
    };

    //! Registers declared within braces, those of inline assembly among them.
    struct Scope
    {
        std::unordered_map<std::string, Width> names;    //!< ".reg .b32 %r;"
        std::unordered_map<std::string, Width> prefixes; //!< ".reg .b32 %r<9>;"
        std::unordered_map<std::string, Register> registers;
    };

    [[noreturn]] void fail(std::string const& what) const;

    void addDirective(std::string const& text);
    void addRegisters(std::string const& text);
    void addStatement(std::string const& text);
    void addInstruction(std::string const& text);
    void findFusable();

    Slot newSlot(Width width);
    Register registerNamed(std::string const& name);
    Slot constant(Width width, uint64_t bits);
    Slot operand(std::string const& text, Width width);
    Slot* specialRegister(std::string const& name);
    Address address(std::string const& text, Width width);
    std::vector<std::string> group(std::string const& text) const;

    //! \name By kind of instruction
    //! @{
    void decode(Instruction& instruction, Statement const& statement);
    void decodeBarrier(Instruction& instruction, Statement const& statement);
    void decodeMemory(Instruction& instruction, Statement const& statement);
    void decodeCopy(Instruction& instruction, Statement const& statement);
    void decodeShuffle(Instruction& instruction, Statement const& statement);
    void decodeMatrices(Instruction& instruction, Statement const& statement);
    void decodeProduct(Instruction& instruction, Statement const& statement);
    void decodePacking(Instruction& instruction, Statement const& statement);
    void decodeForm(Instruction& instruction, Statement const& statement);
    //! @}

    Kernel& mKernel;
    uint32_t mLine{};
    std::vector<Scope> mScopes;
    std::unordered_map<std::string, uint32_t> mSymbols; //!< parameters and shared variables: their addresses
    std::map<std::string, int32_t> mLabels;
    std::vector<std::pair<size_t, std::string>> mBranches; //!< instruction, label
    std::map<std::pair<Width, uint64_t>, Slot> mConstants;
};

} // namespace ptx
