//! \file forms.h
//! Instructions that compute each lane by itself: a table from opcode to what it does, written as lambdas.
#pragma once

#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "machine.h"

namespace ptx
{

//! Registers of 16 bits take 32.
enum class Width : uint8_t
{
    kPREDICATE,
    k32,
    k64,
};

//! What the decoder needs of an opcode.
struct Form
{
    Operation operation{};
    Width result{};
    std::vector<Width> operands;
};

using Forms = std::unordered_map<std::string, Form>;

//! nullptr: the interpreter does not know the opcode.
Form const* formOf(std::string const& opcode);

//! \name What formOf() collects
//! @{
void addArithmetic(Forms& forms);
void addComparisons(Forms& forms);
void addConversions(Forms& forms);
//! @}

//! \name A signed number of 16 bits, of a register's upper ones nothing
//! @{
inline int32_t signedBits(uint32_t number)
{
    return static_cast<int16_t>(number);
}

inline uint32_t lowBits(int32_t number)
{
    return static_cast<uint16_t>(number);
}
//! @}

template <typename T>
constexpr Width kWIDTH_OF{std::is_same_v<T, bool> ? Width::kPREDICATE
        : sizeof(T) == 8                          ? Width::k64
                                                  : Width::k32};

//! The numbers of an operand, by lane.
template <typename T>
struct Source
{
    T const* numbers;

    Source(Warp const& warp, Slot slot)
        : numbers(warp.lanes<T>(slot))
    {
    }

    T operator[](int32_t lane) const
    {
        return numbers[lane];
    }
};

template <>
struct Source<bool>
{
    uint32_t bits;

    Source(Warp const& warp, Slot slot)
        : bits(warp.predicate(slot))
    {
    }

    bool operator[](int32_t lane) const
    {
        return (bits >> lane & 1U) != 0;
    }
};

template <typename Function, typename Signature>
struct Elementwise;

template <typename Function, typename Result, typename... Operands>
struct Elementwise<Function, Result(Operands...)>
{
    static void run(Warp& warp, Instruction const& instruction, uint32_t lanes)
    {
        run(warp, instruction, lanes, std::index_sequence_for<Operands...>{});
    }

    template <size_t... kINDEX>
    static void run(Warp& warp, Instruction const& instruction, uint32_t lanes, std::index_sequence<kINDEX...>)
    {
        std::tuple<Source<Operands>...> const sources{Source<Operands>(warp, instruction.operands[kINDEX])...};
        using Stored = std::conditional_t<std::is_same_v<Result, bool>, uint32_t, Result>;
        Stored results[kLANES];
        for (int32_t lane = 0; lane < kLANES; ++lane)
        {
            auto const result = Function{}(std::get<kINDEX>(sources)[lane]...);
            if constexpr (std::is_same_v<Result, float>)
            {
                results[lane] = canonical(result);
            }
            else if constexpr (std::is_same_v<Result, bool>)
            {
                results[lane] = result ? 1U << lane : 0U;
            }
            else
            {
                results[lane] = static_cast<Result>(result);
            }
        }
        if constexpr (std::is_same_v<Result, bool>)
        {
            uint32_t bits = 0;
            for (uint32_t const result : results)
            {
                bits |= result;
            }
            putPredicate(warp, instruction.result, lanes, bits);
        }
        else
        {
            put(warp, instruction.result, lanes, results);
        }
    }
};

//! The form of Result(Operands...).
template <typename Signature>
struct FormOf;

template <typename Result, typename... Operands>
struct FormOf<Result(Operands...)>
{
    template <typename Function>
    static Form make(Function)
    {
        return {&Elementwise<Function, Result(Operands...)>::run, kWIDTH_OF<Result>, {kWIDTH_OF<Operands>...}};
    }
};

template <typename Signature, typename Function>
Form form(Function function)
{
    return FormOf<Signature>::make(function);
}

//! One or two operands of type T, and a result of the same type.
template <typename T, typename Function>
Form unary(Function function)
{
    return form<T(T)>(function);
}

template <typename T, typename Function>
Form binary(Function function)
{
    return form<T(T, T)>(function);
}

} // namespace ptx
