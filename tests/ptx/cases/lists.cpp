//! \file lists.cpp
//! Lists of cases: which sizes meet which inputs.
#include <utility>

#include "case.h"

namespace ptx
{

using hspan::ElementType;
using hspan::TensorLayout;

namespace
{

//! Of a case, what does not depend on configuration, type and layout.
struct Sizes
{
    int32_t images;
    int32_t scoreChannels;
    int32_t valueChannels;
    int32_t positions;
};

struct Entry
{
    Sizes sizes;
    std::string regime;
    int32_t capacity;
    Effort effort;
};

using Entries = std::vector<Entry>;

std::string const kREGIMES[]{
    "sparse", "mid", "dense", "flat", "ties", "huge", "nan", "keyinf", "valinf", "valspecial", "offset", "keynan"};

//! Each regime once, lists that overflow, with one key and with many more than they take, and one wide value.
Entries quickEntries()
{
    Entries entries;
    for (std::string const& regime : kREGIMES)
    {
        entries.push_back({{1, 16, 24, 65}, regime, 0, Effort::kSCHEDULES});
    }
    entries.push_back({{1, 16, 24, 129}, "dense", 40, Effort::kALL});
    entries.push_back({{1, 16, 24, 41}, "dense", 40, Effort::kSCHEDULES});
    entries.push_back({{2, 3, 5, 70}, "keynan", 40, Effort::kSCHEDULES});
    entries.push_back({{2, 3, 5, 33}, "mid", 0, Effort::kALL});
    entries.push_back({{2, 3, 5, 33}, "nan", 0, Effort::kSCHEDULES});
    entries.push_back({{1, 17, 97, 70}, "mid", 0, Effort::kSCHEDULES}); // of finish's blocks only two warps fit
    return entries;
}

//! Numbers of keys around those of warps and tiles.
Entries sizeEntries()
{
    Entries entries;
    for (int32_t const positions : {1, 31, 33, 64, 65, 129})
    {
        bool const isThorough = positions == 33 || positions == 65;
        for (std::string const& regime : kREGIMES)
        {
            entries.push_back({{1, 3, 5, positions}, regime, 0, positions <= 65 ? Effort::kALL : Effort::kSCHEDULES});
            entries.push_back({{2, 16, 24, positions}, regime, 0, isThorough ? Effort::kALL : Effort::kSCHEDULES});
        }
    }
    return entries;
}

Entries overflowEntries()
{
    Entries entries;
    for (int32_t const capacity : {1, 32, 40, 64, 100})
    {
        for (int32_t const positions : {65, 129, 200})
        {
            for (std::string const& regime : kREGIMES)
            {
                bool const isThorough = capacity == 40 && positions == 129;
                entries.push_back(
                    {{1, 16, 24, positions}, regime, capacity, isThorough ? Effort::kALL : Effort::kSCHEDULES});
                if (capacity == 40)
                {
                    entries.push_back({{2, 3, 5, positions}, regime, capacity, Effort::kSCHEDULES});
                }
                if (capacity == 64)
                {
                    entries.push_back({{1, 40, 100, positions}, regime, capacity, Effort::kSCHEDULES});
                }
            }
        }
    }
    return entries;
}

//! The published channel counts, the most that tiles serve, and odd ones.
Entries wideEntries()
{
    Entries entries;
    for (std::string const& regime : kREGIMES)
    {
        entries.push_back({{1, 96, 192, 33}, regime, 0, Effort::kSCHEDULES});
        entries.push_back({{1, 96, 192, 129}, regime, 48, Effort::kSCHEDULES});
    }
    entries.push_back({{1, 128, 256, 70}, "mid", 0, Effort::kALL});
    entries.push_back({{1, 128, 256, 70}, "dense", 32, Effort::kALL});
    entries.push_back({{1, 127, 255, 70}, "sparse", 0, Effort::kSCHEDULES});
    entries.push_back({{1, 1, 1, 70}, "mid", 0, Effort::kALL});
    entries.push_back({{1, 17, 97, 70}, "dense", 32, Effort::kALL});
    return entries;
}

//! Rows of different kinds in one tile, scores in ascending order, underflow, one long key, the greatest numbers.
Entries specialEntries()
{
    Entries entries;
    for (char const* const regime : {"mixed", "onedense", "ascending", "descending", "tiny", "offsetneg", "keynan"})
    {
        entries.push_back({{1, 16, 24, 200}, regime, 0, Effort::kSCHEDULES});
        entries.push_back({{2, 3, 5, 129}, regime, 0, Effort::kSCHEDULES});
        entries.push_back({{1, 16, 24, 200}, regime, 40, Effort::kALL});
        entries.push_back({{2, 3, 5, 129}, regime, 33, Effort::kSCHEDULES});
        entries.push_back({{1, 40, 100, 300}, regime, 96, Effort::kSCHEDULES});
    }
    for (char const* const regime : {"longkey", "max"})
    {
        entries.push_back({{1, 16, 24, 200}, regime, 0, Effort::kSCHEDULES});
        entries.push_back({{1, 16, 24, 200}, regime, 40, Effort::kSCHEDULES});
        entries.push_back({{2, 12, 21, 100}, regime, 0, Effort::kSCHEDULES});
        entries.push_back({{2, 12, 21, 100}, regime, 33, Effort::kSCHEDULES});
    }
    return entries;
}

//! Sizes that only the plain kernels serve, and no score channels at all.
Entries plainEntries()
{
    Entries entries;
    for (char const* const regime : {"mid", "huge", "dense"})
    {
        entries.push_back({{1, 200, 300, 65}, regime, 0, Effort::kSCHEDULES});
        entries.push_back({{1, 130, 97, 130}, regime, 0, Effort::kSCHEDULES});
        entries.push_back({{1, 0, 5, 65}, regime, 0, Effort::kSCHEDULES});
        entries.push_back({{3, 1, 1, 129}, regime, 0, Effort::kSCHEDULES});
    }
    return entries;
}

//! Longer rows, lists of the usual capacity that overflow, and more rows than a chunk has.
Entries largeEntries()
{
    return {{{1, 96, 192, 577}, "sparse", 0, Effort::kONCE}, {{1, 96, 192, 577}, "mid", 0, Effort::kONCE},
        {{1, 96, 192, 577}, "dense", 300, Effort::kONCE}, {{1, 16, 24, 577}, "huge", 0, Effort::kSCHEDULES},
        {{1, 3, 5, 577}, "ties", 0, Effort::kSCHEDULES}, {{2, 3, 5, 577}, "flat", 128, Effort::kSCHEDULES},
        {{1, 16, 24, 1200}, "dense", 0, Effort::kONCE}, {{1, 16, 24, 1200}, "flat", 0, Effort::kONCE},
        {{1, 16, 24, 1200}, "mid", 0, Effort::kONCE}, {{131, 3, 5, 7}, "mid", 0, Effort::kONCE}};
}

Entries entriesOf(std::string const& list)
{
    using Make = Entries (*)();
    static std::pair<char const*, Make> const kLISTS[]
        = {{"quick", quickEntries}, {"sizes", sizeEntries}, {"overflow", overflowEntries}, {"wide", wideEntries},
            {"special", specialEntries}, {"plain", plainEntries}, {"large", largeEntries}};
    for (auto const& [name, make] : kLISTS)
    {
        if (list == name)
        {
            return make();
        }
    }
    return {};
}

} // namespace

std::vector<PlannedCase> casesOf(std::string const& list, int32_t computeCapability)
{
    std::vector<PlannedCase> cases;
    Entries const entries = entriesOf(list);
    int32_t const first = list == "plain" ? 0 : 1; // there the automatic choice is among them
    for (int32_t config = first; config < hspan::attentionConfigCount(); ++config)
    {
        for (ElementType const type : {ElementType::kFLOAT, ElementType::kHALF, ElementType::kBFLOAT16})
        {
            for (TensorLayout const layout : {TensorLayout::kLINEAR, TensorLayout::kCHANNELS_LAST})
            {
                for (Entry const& entry : entries)
                {
                    Sizes const& sizes = entry.sizes;
                    Case const testCase{config, type, layout, sizes.images, sizes.scoreChannels, sizes.valueChannels,
                        sizes.positions, entry.regime, entry.capacity};
                    bool const isServed = hspan::isAttentionConfigSupported(
                        config, type, sizes.scoreChannels, sizes.valueChannels, computeCapability);
                    // Plain kernels have no lists: a case with a capacity is the one without again.
                    bool const isRepeated = !testCase.isTiled() && entry.capacity != 0 && list != "quick";
                    if (isServed && !isRepeated)
                    {
                        cases.push_back({testCase, entry.effort});
                    }
                }
            }
        }
    }
    return cases;
}

} // namespace ptx
