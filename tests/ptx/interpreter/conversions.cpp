//! \file conversions.cpp
//! Comparisons, choices, copies and conversions between types.
#include <cmath>
#include <limits>

#include <immintrin.h>

#include "forms.h"
#include "half.h"

namespace ptx
{

namespace
{

template <typename T, typename Function>
Form comparison(Function function)
{
    return form<bool(T, T)>(function);
}

//! `name` for signed, `unsignedName` for unsigned numbers.
template <typename Function>
void addComparison(Forms& forms, std::string const& name, std::string const& unsignedName, Function function)
{
    forms["setp." + name + ".s32"] = comparison<int32_t>(function);
    forms["setp." + name + ".s64"] = comparison<int64_t>(function);
    forms["setp." + name + ".f32"] = comparison<float>(function); // false where one is NaN
    for (std::string const& each : {name, unsignedName})
    {
        forms["setp." + each + ".u16"] = forms["setp." + each + ".u32"] = comparison<uint32_t>(function);
        forms["setp." + each + ".u64"] = comparison<uint64_t>(function);
    }
}

//! A comparison of floats that is true where one is NaN.
template <typename Function>
void addUnordered(Forms& forms, std::string const& name, Function function)
{
    forms["setp." + name + ".f32"] = comparison<float>(function);
}

//! Rounded to the nearest integer; numbers out of range end at its limits. What becomes of NaN the PTX ISA says.
template <typename T>
T integerFrom(float number, T ofNan)
{
    constexpr float kBEYOND{-static_cast<float>(std::numeric_limits<T>::min())};
    float const rounded = std::nearbyint(number);
    return number != number  ? ofNan
        : rounded >= kBEYOND ? std::numeric_limits<T>::max()
        : rounded < -kBEYOND ? std::numeric_limits<T>::min()
                             : static_cast<T>(rounded);
}

} // namespace

void addComparisons(Forms& forms)
{
    addComparison(forms, "lt", "lo", [](auto a, auto b) { return a < b; });
    addComparison(forms, "le", "ls", [](auto a, auto b) { return a <= b; });
    addComparison(forms, "gt", "hi", [](auto a, auto b) { return a > b; });
    addComparison(forms, "ge", "hs", [](auto a, auto b) { return a >= b; });
    auto const isEqual = [](auto a, auto b) { return a == b; };
    auto const isDifferent = [](auto a, auto b) { return a != b; };
    for (std::string const type : {"s32", "u32", "b32", "s16", "u16", "b16"})
    {
        forms["setp.eq." + type] = comparison<uint32_t>(isEqual);
        forms["setp.ne." + type] = comparison<uint32_t>(isDifferent);
    }
    for (std::string const type : {"s64", "u64", "b64"})
    {
        forms["setp.eq." + type] = comparison<uint64_t>(isEqual);
        forms["setp.ne." + type] = comparison<uint64_t>(isDifferent);
    }
    forms["setp.eq.f32"] = comparison<float>(isEqual);
    forms["setp.ne.f32"] = comparison<float>([](float a, float b) { return a < b || a > b; });
    forms["setp.num.f32"] = comparison<float>([](float a, float b) { return a == a && b == b; });
    addUnordered(forms, "nan", [](float a, float b) { return a != a || b != b; });
    addUnordered(forms, "equ", [](float a, float b) { return !(a < b || a > b); });
    addUnordered(forms, "neu", [](float a, float b) { return a != b; });
    addUnordered(forms, "ltu", [](float a, float b) { return !(a >= b); });
    addUnordered(forms, "leu", [](float a, float b) { return !(a > b); });
    addUnordered(forms, "gtu", [](float a, float b) { return !(a <= b); });
    addUnordered(forms, "geu", [](float a, float b) { return !(a < b); });
}

void addConversions(Forms& forms)
{
    auto const same = [](auto a) { return a; };
    auto const choice = [](auto a, auto b, bool condition) { return condition ? a : b; };
    for (std::string const type : {"b16", "u16", "s16", "b32", "u32", "s32", "f32"})
    {
        forms["mov." + type] = unary<uint32_t>(same);
        forms["selp." + type] = form<uint32_t(uint32_t, uint32_t, bool)>(choice);
    }
    for (std::string const type : {"b64", "u64", "s64"})
    {
        forms["mov." + type] = unary<uint64_t>(same);
        forms["selp." + type] = form<uint64_t(uint64_t, uint64_t, bool)>(choice);
    }
    forms["mov.pred"] = unary<bool>(same);
    forms["cvta.to.global.u64"] = unary<uint64_t>(same);

    forms["cvt.s64.s32"] = form<int64_t(int32_t)>(same);
    forms["cvt.s64.s32 of 64 bits"] = unary<int64_t>([](int64_t a) { return static_cast<int32_t>(a); });
    forms["cvt.u64.u32"] = forms["cvt.s64.u32"] = form<uint64_t(uint32_t)>(same);
    forms["cvt.u32.u64"] = forms["cvt.u32.s64"] = form<uint32_t(uint64_t)>(same);
    forms["cvt.u16.u32"] = unary<uint32_t>([](uint32_t a) { return a & 0xffffU; });
    forms["cvt.u32.u16"] = unary<uint32_t>(same);
    forms["cvt.s32.s16"] = form<int32_t(uint32_t)>([](uint32_t a) { return signedBits(a); });

    auto const toFloat = [](auto a) { return static_cast<float>(a); };
    forms["cvt.rn.f32.s32"] = form<float(int32_t)>(toFloat);
    forms["cvt.rn.f32.u32"] = form<float(uint32_t)>(toFloat);
    forms["cvt.rn.f32.s64"] = form<float(int64_t)>(toFloat);
    forms["cvt.rn.f32.u64"] = form<float(uint64_t)>(toFloat);
    forms["cvt.rni.f32.f32"] = unary<float>([](float a) { return std::nearbyint(a); });
    forms["cvt.rni.s64.f32"]
        = form<int64_t(float)>([](float a) { return integerFrom<int64_t>(a, std::numeric_limits<int64_t>::min()); });
    forms["cvt.rni.s32.f32"] = form<int32_t(float)>([](float a) { return integerFrom<int32_t>(a, 0); });

    forms["cvt.f32.f16"] = form<float(uint32_t)>([](uint32_t a) { return floatFromHalf(a); });
    forms["cvt.f32.bf16"] = form<float(uint32_t)>([](uint32_t a) { return floatFromBFloat16(a); });
    forms["cvt.rn.f16.f32"] = form<uint32_t(float)>([](float a) { return halfFromFloat(a); });
    forms["cvt.rn.bf16.f32"] = form<uint32_t(float)>([](float a) { return bfloat16FromFloat(a); });
    // Of a pair the first operand goes to the upper half.
    forms["cvt.rn.f16x2.f32"] = form<uint32_t(float, float)>(
        [](float high, float low) { return halfFromFloat(high) << 16U | halfFromFloat(low); });
    forms["cvt.rn.bf16x2.f32"] = form<uint32_t(float, float)>(
        [](float high, float low) { return bfloat16FromFloat(high) << 16U | bfloat16FromFloat(low); });
}

Form const* formOf(std::string const& opcode)
{
    static Forms const forms = []
    {
        Forms all;
        addArithmetic(all);
        addComparisons(all);
        addConversions(all);
        return all;
    }();
    auto const entry = forms.find(opcode);
    return entry == forms.end() ? nullptr : &entry->second;
}

} // namespace ptx
