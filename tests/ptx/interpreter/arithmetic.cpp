//! \file arithmetic.cpp
//! Integers, floats, bits and predicates.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include <immintrin.h>

#include "forms.h"

namespace ptx
{

namespace
{

//! For integers of 32 and 64 bits, signed and unsigned.
template <typename Function>
void addIntegers(Forms& forms, std::string const& name, Function function)
{
    forms[name + ".s32"] = binary<int32_t>(function);
    forms[name + ".u32"] = binary<uint32_t>(function);
    forms[name + ".s64"] = binary<int64_t>(function);
    forms[name + ".u64"] = binary<uint64_t>(function);
}

//! The same where the sign makes no difference: numbers wrap around.
template <typename Function>
void addWrapping(Forms& forms, std::string const& name, Function function)
{
    forms[name + ".s32"] = forms[name + ".u32"] = binary<uint32_t>(function);
    forms[name + ".s64"] = forms[name + ".u64"] = binary<uint64_t>(function);
}

template <typename Function>
void addBits(Forms& forms, std::string const& name, Function function)
{
    forms[name + ".b16"] = forms[name + ".b32"] = binary<uint32_t>(function);
    forms[name + ".b64"] = binary<uint64_t>(function);
}

//! Shifts by all bits and more leave nothing, of negative numbers the sign.
template <typename T>
T shiftedLeft(T number, uint32_t count)
{
    return count >= 8 * sizeof(T) ? T{0} : static_cast<T>(number << count);
}

template <typename T>
T shiftedRight(T number, uint32_t count)
{
    constexpr uint32_t kMOST{8 * sizeof(T) - 1};
    T const rest = static_cast<T>(number >> (count > kMOST ? kMOST : count));
    return std::is_unsigned_v<T> && count > kMOST ? T{0} : rest;
}

//! What PTX leaves open, division by zero, is all ones; the greatest negative number wraps around.
template <typename T>
T quotient(T a, T b)
{
    if (b == 0 || (std::is_signed_v<T> && b == static_cast<T>(-1)))
    {
        return b == 0 ? static_cast<T>(-1) : static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
    }
    return a / b;
}

//! The low `length` bits of a, put into b at `position`.
template <typename T>
T bitsInserted(T a, T b, uint32_t position, uint32_t length)
{
    for (uint32_t i = 0; i < (length & 0xffU) && (position & 0xffU) + i < 8 * sizeof(T); ++i)
    {
        T const bit = T{1} << ((position & 0xffU) + i);
        b = (a >> i & 1U) != 0 ? (b | bit) : (b & ~bit);
    }
    return b;
}

uint32_t reversed(uint32_t bits)
{
    uint32_t result = 0;
    for (int32_t i = 0; i < 32; ++i)
    {
        result |= (bits >> i & 1U) << (31 - i);
    }
    return result;
}

//! a + b, rounded towards minus infinity.
__attribute__((noinline)) float sumRoundedDown(float a, float b)
{
    constexpr unsigned kROUNDING{0x6000};
    constexpr unsigned kDOWN{0x2000};
    unsigned const before = _mm_getcsr();
    _mm_setcsr((before & ~kROUNDING) | kDOWN);
    float const volatile x = a;
    float const volatile y = b;
    float const volatile sum = x + y;
    _mm_setcsr(before);
    return sum;
}

//! The number where one of the two is NaN; -0 below 0.
float greaterNumber(float a, float b)
{
    return a != a ? b : b != b ? a : a > b ? a : b > a ? b : std::signbit(a) ? b : a;
}

float lesserNumber(float a, float b)
{
    return a != a ? b : b != b ? a : a < b ? a : b < a ? b : std::signbit(a) ? a : b;
}

void addIntegerArithmetic(Forms& forms)
{
    addWrapping(forms, "add", [](auto a, auto b) { return a + b; });
    addWrapping(forms, "sub", [](auto a, auto b) { return a - b; });
    addWrapping(forms, "mul.lo", [](auto a, auto b) { return a * b; });
    addIntegers(forms, "min", [](auto a, auto b) { return b < a ? b : a; });
    addIntegers(forms, "max", [](auto a, auto b) { return a < b ? b : a; });
    addIntegers(forms, "div", [](auto a, auto b) { return quotient(a, b); });
    addIntegers(forms, "rem", [](auto a, auto b) { return b == 0 ? a : a - quotient(a, b) * b; });
    forms["mul.wide.s32"] = form<int64_t(int32_t, int32_t)>([](int64_t a, int64_t b) { return a * b; });
    forms["mul.wide.u32"] = form<uint64_t(uint32_t, uint32_t)>([](uint64_t a, uint64_t b) { return a * b; });
    forms["mul.wide.u16"] = binary<uint32_t>([](uint32_t a, uint32_t b) { return a * b; });
    forms["mul.hi.u32"] = binary<uint32_t>([](uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b >> 32U; });
    auto const multiplyAdd = [](auto a, auto b, auto c) { return a * b + c; };
    forms["mad.lo.s32"] = forms["mad.lo.u32"] = form<uint32_t(uint32_t, uint32_t, uint32_t)>(multiplyAdd);
    forms["mad.lo.s64"] = forms["mad.lo.u64"] = form<uint64_t(uint64_t, uint64_t, uint64_t)>(multiplyAdd);
    forms["mad.wide.s32"]
        = form<int64_t(int32_t, int32_t, int64_t)>([](int64_t a, int64_t b, int64_t c) { return a * b + c; });
    forms["mad.wide.u32"]
        = form<uint64_t(uint32_t, uint32_t, uint64_t)>([](uint64_t a, uint64_t b, uint64_t c) { return a * b + c; });
    forms["neg.s32"] = unary<uint32_t>([](uint32_t a) { return 0U - a; });
    forms["neg.s64"] = unary<uint64_t>([](uint64_t a) { return uint64_t{0} - a; });
    forms["add.s16"] = forms["add.u16"] = binary<uint32_t>([](uint32_t a, uint32_t b) { return (a + b) & 0xffffU; });
    forms["max.s16"]
        = binary<uint32_t>([](uint32_t a, uint32_t b) { return lowBits(std::max(signedBits(a), signedBits(b))); });
    forms["sub.s16"] = forms["sub.u16"] = binary<uint32_t>([](uint32_t a, uint32_t b) { return (a - b) & 0xffffU; });
}

void addBitOperations(Forms& forms)
{
    addBits(forms, "and", [](auto a, auto b) { return a & b; });
    addBits(forms, "or", [](auto a, auto b) { return a | b; });
    addBits(forms, "xor", [](auto a, auto b) { return a ^ b; });
    forms["not.b32"] = unary<uint32_t>([](uint32_t a) { return ~a; });
    forms["not.b64"] = unary<uint64_t>([](uint64_t a) { return ~a; });
    auto const left = [](auto number, uint32_t count) { return shiftedLeft(number, count); };
    auto const right = [](auto number, uint32_t count) { return shiftedRight(number, count); };
    forms["shl.b32"] = form<uint32_t(uint32_t, uint32_t)>(left);
    forms["shl.b64"] = form<uint64_t(uint64_t, uint32_t)>(left);
    forms["shr.s32"] = form<int32_t(int32_t, uint32_t)>(right);
    forms["shr.s64"] = form<int64_t(int64_t, uint32_t)>(right);
    forms["shr.s16"] = form<uint32_t(uint32_t, uint32_t)>(
        [](uint32_t number, uint32_t count) { return lowBits(shiftedRight(signedBits(number), count)); });
    forms["shr.u16"] = forms["shr.u32"] = forms["shr.b32"] = form<uint32_t(uint32_t, uint32_t)>(right);
    forms["shr.u64"] = forms["shr.b64"] = form<uint64_t(uint64_t, uint32_t)>(right);
    auto const insert
        = [](auto a, auto b, uint32_t position, uint32_t length) { return bitsInserted(a, b, position, length); };
    forms["bfi.b32"] = form<uint32_t(uint32_t, uint32_t, uint32_t, uint32_t)>(insert);
    forms["bfi.b64"] = form<uint64_t(uint64_t, uint64_t, uint32_t, uint32_t)>(insert);
    forms["popc.b32"] = unary<uint32_t>([](uint32_t a) { return std::popcount(a); });
    forms["popc.b64"] = form<uint32_t(uint64_t)>([](uint64_t a) { return std::popcount(a); });
    forms["clz.b32"] = unary<uint32_t>([](uint32_t a) { return std::countl_zero(a); });
    forms["clz.b64"] = form<uint32_t(uint64_t)>([](uint64_t a) { return std::countl_zero(a); });
    forms["brev.b32"] = unary<uint32_t>([](uint32_t a) { return reversed(a); });
    // The place of the greatest bit, and its distance from the top; all ones where there is none.
    forms["bfind.u32"] = unary<uint32_t>([](uint32_t a) { return a == 0 ? ~0U : 31U - std::countl_zero(a); });
    forms["bfind.shiftamt.u32"]
        = unary<uint32_t>([](uint32_t a) { return a == 0 ? ~0U : static_cast<uint32_t>(std::countl_zero(a)); });
}

void addFloatArithmetic(Forms& forms)
{
    forms["add.f32"] = forms["add.rn.f32"] = binary<float>([](float a, float b) { return a + b; });
    forms["sub.f32"] = forms["sub.rn.f32"] = binary<float>([](float a, float b) { return a - b; });
    forms["mul.f32"] = forms["mul.rn.f32"] = binary<float>([](float a, float b) { return a * b; });
    forms["div.rn.f32"] = binary<float>([](float a, float b) { return a / b; });
    forms["sqrt.rn.f32"] = unary<float>([](float a) { return std::sqrt(a); });
    forms["rcp.rn.f32"] = unary<float>([](float a) { return 1.0F / a; });
    // Off by a unit in the last place at most: the interpreter may round either way.
    forms["rcp.approx.ftz.f32"] = unary<float>(
        [](float a) { return machine.options.isReciprocalGreater ? std::nextafter(1.0F / a, INFINITY) : 1.0F / a; });
    forms["add.rm.f32"] = binary<float>([](float a, float b) { return sumRoundedDown(a, b); });
    forms["fma.rn.f32"]
        = form<float(float, float, float)>([](float a, float b, float c) { return __builtin_fmaf(a, b, c); });
    forms["neg.f32"] = unary<float>([](float a) { return -a; });
    forms["abs.f32"] = unary<float>([](float a) { return std::fabs(a); });
    forms["max.f32"] = binary<float>([](float a, float b) { return greaterNumber(a, b); });
    forms["min.f32"] = binary<float>([](float a, float b) { return lesserNumber(a, b); });
    forms["max.NaN.f32"] = binary<float>([](float a, float b)
        { return a != a || b != b ? std::numeric_limits<float>::quiet_NaN() : greaterNumber(a, b); });
}

} // namespace

void addArithmetic(Forms& forms)
{
    addIntegerArithmetic(forms);
    addBitOperations(forms);
    addFloatArithmetic(forms);
    forms["and.pred"] = binary<bool>([](bool a, bool b) { return a && b; });
    forms["or.pred"] = binary<bool>([](bool a, bool b) { return a || b; });
    forms["xor.pred"] = binary<bool>([](bool a, bool b) { return a != b; });
    forms["not.pred"] = unary<bool>([](bool a) { return !a; });
}

} // namespace ptx
