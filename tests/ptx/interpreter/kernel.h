//! \file kernel.h
//! A kernel of a PTX module, decoded: instructions whose operands are slots of a warp's registers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ptx
{

struct Warp;
struct Instruction;

//! What an instruction does for the lanes whose bits are set.
using Operation = void (*)(Warp& warp, Instruction const& instruction, uint32_t lanes);

//! How the program counter goes on.
enum class Flow : uint8_t
{
    kNEXT,
    kBRANCH,
    kEXIT,
    kWARP_SYNC,  //!< .sync: waits for the lanes that it names
    kBLOCK_SYNC, //!< a barrier of the block
};

//! A slot is the offset in bytes of a register in the warp's register file: 32 numbers of 4 or 8 bytes, or the 32 bits
//! of a predicate.
using Slot = uint32_t;

//! An operand [base + offset].
struct Address
{
    Slot base{};
    bool isWide{}; //!< 64 bits: global memory
    int64_t offset{};
};

struct Instruction
{
    Operation operation{};
    Flow flow{Flow::kNEXT};
    bool isGuarded{};
    bool isGuardNegated{};
    Slot guard{};
    Slot result{};
    Slot secondResult{}; //!< the predicate of shfl; 0: none
    Slot operands[4]{};
    Slot group[14]{}; //!< registers in braces
    Slot members{};   //!< of Flow::kWARP_SYNC
    Address address{};
    Address source{};       //!< of an asynchronous copy
    uint8_t elementBytes{}; //!< of one element in memory
    uint8_t elements{};
    bool isSigned{};
    bool isWide{};       //!< elements go to 64-bit registers
    bool ordersMemory{}; //!< bar.warp.sync
    bool isReduction{};  //!< bar.red.or
    uint8_t variant{};   //!< of shfl, and of a sum that may be fused
    int32_t target{-1};
    uint32_t line{};
    std::string text;
};

//! A literal, written to its slot once.
struct Constant
{
    Slot slot;
    bool isWide;
    uint64_t bits;
};

struct Parameter
{
    std::string name;
    uint32_t offset;
    uint32_t bytes;
};

//! Slots of the special registers; 0 where the kernel does not use one.
struct SpecialRegisters
{
    Slot threadIndex[3]{};
    Slot blockIndex[3]{};
    Slot blockSize[3]{};
    Slot gridSize[3]{};
    Slot lane{};
    Slot lanesBefore{};
};

struct Kernel
{
    std::string name;
    std::vector<Parameter> parameters;
    uint32_t parameterBytes{};
    uint32_t sharedBytes{};
    uint32_t maxThreads{1024};
    uint32_t registerBytes{64}; //!< of one warp; slot 0 is nobody's
    std::vector<Constant> constants;
    SpecialRegisters special;
    std::vector<Instruction> code;
    std::vector<uint64_t> executed; //!< warps, per instruction
};

//! Shared memory begins here, so that address 0 is nobody's.
constexpr uint32_t kSHARED_BASE{1024};

//! Decodes all kernels of a module. A kernel that two modules contain is the same template: the later one stays.
//! \throws std::runtime_error for a directive, opcode or operand that the interpreter does not know.
void loadModule(std::string const& text);

//! nullptr: there is no such kernel.
Kernel* findKernel(std::string const& name);

std::vector<Kernel*> allKernels();

} // namespace ptx
