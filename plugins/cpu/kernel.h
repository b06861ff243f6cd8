//! \file kernel.h
//! The attention of one image, tile by tile of query rows, compiled once per instruction set.
//!
//! A tile's scores are computed by a register-tiled matrix product that also keeps the maxima of every few keys. Those
//! maxima are scores themselves, so the sparsemax threshold of the maxima alone bounds the row's from below, and
//! closely: all that lies under it is never looked at again. What remains is a short list for most rows, on which the
//! exact threshold is computed and whose values are gathered. Rows with more candidates than are worth a list take
//! vectorized Newton passes over their scores and a matrix product with the values.
#pragma once

#include "refinement.h"

namespace hspan::cpu
{
namespace
{

constexpr int64_t kCHAIN = 64;           //!< products that are summed in one float
constexpr int64_t kLEAST_DENSE_ROWS = 6; //!< fewer dense rows in a tile are gathered
constexpr int64_t kTILE_BYTES = 8 << 20; //!< of scores
constexpr int64_t kMOST_TILE_ROWS = 48;

//! sum[r][half] = over k < depth of left(r, k) right[k][half], one chain of fused multiply-adds each.
template <typename Left>
HSPAN_INLINE void multiply(Left left, float const* right, int64_t depth, Vec (&sum)[kROWS][2])
{
#pragma GCC unroll 6
    for (int64_t r = 0; r < kROWS; ++r)
    {
        sum[r][0] = Vec{};
        sum[r][1] = Vec{};
    }
    for (int64_t k = 0; k < depth; ++k)
    {
        Vec const first = load(right + k * kWIDTH);
        Vec const second = load(right + k * kWIDTH + kLANES);
#pragma GCC unroll 6
        for (int64_t r = 0; r < kROWS; ++r)
        {
            Vec const factor = broadcast(left(r, k));
            sum[r][0] += factor * first;
            sum[r][1] += factor * second;
        }
    }
}

template <typename T>
void packQuery(Problem const& problem, Workspace& w, int64_t first, int64_t rows)
{
    Tensor<T> const query(problem.query);
    for (int64_t start = 0; start < rows; start += kROWS)
    {
        packPositions<kROWS>(
            query, problem.scoreChannels, first + start, first + rows, w.query + start * problem.scoreChannels);
    }
}

//! Scores of the tile's rows against all keys, and their maxima lane by lane over each group of panels.
//! Scores beyond the last key are -inf.
template <typename T>
void scoreTile(Problem const& problem, Workspace& w, int64_t rows)
{
    int64_t const channels = problem.scoreChannels;
    int64_t const ragged = problem.positions % kWIDTH;
    Vec const lowest = broadcast(-__builtin_inff());
    for (int64_t p = 0; p < w.panels; ++p)
    {
        float const* panel = panelOfKeys<T>(problem, w, p);
        for (int64_t start = 0; start < rows; start += kROWS)
        {
            float const* query = w.query + start * channels;
            Vec sum[kROWS][2];
            multiply([=](int64_t r, int64_t c) { return query[c * kROWS + r]; }, panel, channels, sum);
            if (ragged != 0 && p == w.panels - 1)
            {
                for (int64_t r = 0; r < kROWS; ++r)
                {
                    for (int64_t i = ragged; i < kWIDTH; ++i)
                    {
                        sum[r][i / kLANES][i % kLANES] = -__builtin_inff();
                    }
                }
            }
            float* scores = w.scores + start * w.stride + p * kWIDTH;
            float* maxima = w.maxima + (start * w.groups + p / kGROUP) * kLANES;
            bool const opensGroup = p % kGROUP == 0;
#pragma GCC unroll 6
            for (int64_t r = 0; r < kROWS; ++r)
            {
                store(scores + r * w.stride, sum[r][0]);
                store(scores + r * w.stride + kLANES, sum[r][1]);
                float* maximum = maxima + r * w.groups * kLANES;
                Vec const before = opensGroup ? lowest : load(maximum);
                store(maximum, larger(larger(sum[r][0], sum[r][1]), before));
            }
        }
    }
}

//! Appends to the lists the scores of a row that are above `bound`.
//! Returns how many, or -1 when they are more than `limit`.
int64_t listCandidates(Workspace& w, float const* scores, float const* maxima, float bound, int64_t limit)
{
    int64_t const vectors = w.panels * 2;
    Vec const bounds = broadcast(bound);
    int64_t end = w.listUsed;
    int64_t const last = w.listUsed + limit;
    for (int64_t g = 0; g < w.groups; ++g)
    {
        if (bitsWhereGreater(load(maxima + g * kLANES), bounds) == 0)
        {
            continue;
        }
        int64_t const stop = lesser(vectors, (g + 1) * kGROUP * 2);
        for (int64_t v = g * kGROUP * 2; v < stop; ++v)
        {
            uint32_t bits = bitsWhereGreater(load(scores + v * kLANES), bounds);
            while (bits != 0)
            {
                if (end == last)
                {
                    return -1;
                }
                int64_t const j = v * kLANES + lowestBit(bits);
                bits &= bits - 1;
                w.listed[end] = scores[j];
                w.index[end] = static_cast<int32_t>(j);
                ++end;
            }
        }
    }
    return end - w.listUsed;
}

//! Turns a row's listed scores into weights, and drops those of weight 0.
void weighListed(Workspace& w, ListedRow& row, Split threshold)
{
    int64_t end = row.begin;
    for (int64_t i = row.begin; i < row.begin + row.count; ++i)
    {
        float const weight = excess(w.listed[i], threshold);
        int32_t const index = w.index[i];
        w.listed[end] = weight;
        w.index[end] = index;
        end += weight > 0.0F ? 1 : 0;
    }
    row.count = static_cast<int32_t>(end - row.begin);
    row.refined = -1;
}

//! Keeps the row whose candidates, `count` of them, are at the end of the lists.
void keepListed(Workspace& w, int64_t row, int64_t count, double bound, Refinement const& refinement)
{
    // Vectors are read whole: what follows the list weighs nothing.
    store(w.listed + w.listUsed + count, broadcast(-__builtin_inff()));
    ListedRow& kept = w.rows[w.rowsUsed++];
    kept = {w.listUsed, static_cast<int32_t>(row), static_cast<int32_t>(count), 0, refinement.bound, refinement.shift};
    if (refinement.isNeeded)
    {
        w.waitsForScores = true;
        w.listUsed += roundedUp(count, kLANES);
        return;
    }
    weighListed(w, kept, threshold(w.listed + w.listUsed, (count + kLANES - 1) / kLANES, bound));
    w.listUsed += kept.count;
}

template <typename T>
void storeChannels(Problem const& problem, int64_t row, int64_t firstChannel, int64_t width, float const* values)
{
    HspanCpuTensor const& output = problem.output;
    T* target = static_cast<T*>(output.data) + firstChannel * output.channelStride + row * output.positionStride;
    int64_t const count = lesser(width, problem.valueChannels - firstChannel);
    for (int64_t k = 0; k < count; ++k)
    {
        narrow(values[k], target[k * output.channelStride]);
    }
}

template <typename T>
void storeNan(Problem const& problem, int64_t row)
{
    float const nan = __builtin_nanf("");
    for (int64_t d = 0; d < problem.valueChannels; ++d)
    {
        storeChannels<T>(problem, row, d, 1, &nan);
    }
}

//! Weighted sums of all rows that wait in the lists, kLANES channels at a time: their values fit into a cache.
template <typename T>
void gather(Problem const& problem, Workspace& w)
{
    if (w.waitsForScores)
    {
        refineListed<T>(problem, w);
        for (ListedRow* row = w.rows; row < w.rows + w.rowsUsed; ++row)
        {
            if (row->refined >= 0)
            {
                int64_t const vectors = (row->count + kLANES - 1) / kLANES;
                weighListed(w, *row, refinedThreshold(w.listed + row->begin, vectors, row->bound));
            }
        }
    }
    Tensor<T> const value(problem.value);
    for (int64_t d = 0; w.rowsUsed != 0 && d < problem.valueChannels; d += kLANES)
    {
        packChannels<kLANES>(value, d, problem.valueChannels, 0, problem.positions, w.slab);
        for (int64_t i = 0; i < w.rowsUsed; ++i)
        {
            ListedRow const& row = w.rows[i];
            TwoVec total{};
            for (int64_t start = row.begin; start < row.begin + row.count; start += kCHAIN)
            {
                int64_t const end = lesser(row.begin + row.count, start + kCHAIN);
                Vec sum[4] = {};
                int64_t e = start;
                for (; e + 4 <= end; e += 4)
                {
#pragma GCC unroll 4
                    for (int64_t u = 0; u < 4; ++u)
                    {
                        sum[u] += broadcast(w.listed[e + u]) * load(w.slab + w.index[e + u] * kLANES);
                    }
                }
                for (; e < end; ++e)
                {
                    sum[0] += broadcast(w.listed[e]) * load(w.slab + w.index[e] * kLANES);
                }
                addTo(total, (sum[0] + sum[1]) + (sum[2] + sum[3]));
            }
            float values[kLANES];
            store(values, valueOf(total));
            storeChannels<T>(problem, row.row, d, kLANES, values);
        }
    }
    w.rowsUsed = 0;
    w.listUsed = 0;
    w.waitsForScores = false;
}

//! part[r][half] += over k < depth of left[r][k] right[k][half]. A function of its own: the compiler then keeps the
//! sums in registers.
__attribute__((noinline)) void addProduct(
    float const* const (&left)[kROWS], float const* right, int64_t depth, Vec (&part)[kROWS][2])
{
    Vec sum[kROWS][2];
    multiply([&](int64_t r, int64_t k) { return left[r][k]; }, right, depth, sum);
#pragma GCC unroll 6
    for (int64_t r = 0; r < kROWS; ++r)
    {
        part[r][0] += sum[r][0];
        part[r][1] += sum[r][1];
    }
}

//! Weighted sums of the tile's dense rows, whose weights have replaced their scores: a matrix product.
template <typename T>
void multiplyDense(Problem const& problem, Workspace& w, int64_t first, int64_t count)
{
    Tensor<T> const value(problem.value);
    for (int64_t d = 0; d < problem.valueChannels; d += kWIDTH)
    {
        for (int64_t i = 0; i < 2 * count; ++i)
        {
            w.totals[i] = TwoVec{};
        }
        for (int64_t j = 0; j < problem.positions; j += kDEPTH)
        {
            int64_t const depth = lesser(kDEPTH, problem.positions - j);
            packChannels<kWIDTH>(value, d, problem.valueChannels, j, depth, w.slab);
            for (int64_t start = 0; start < count; start += kROWS)
            {
                float const* weights[kROWS];
                for (int64_t r = 0; r < kROWS; ++r)
                {
                    weights[r] = w.scores + w.dense[lesser(start + r, count - 1)].row * w.stride + j;
                }
                Vec part[kROWS][2] = {};
                for (int64_t k = 0; k < depth; k += kCHAIN)
                {
                    addProduct(weights, w.slab + k * kWIDTH, lesser(kCHAIN, depth - k), part);
                    for (float const*& row : weights)
                    {
                        row += kCHAIN;
                    }
                }
                for (int64_t r = 0; r < lesser(kROWS, count - start); ++r)
                {
                    addTo(w.totals[2 * (start + r)], part[r][0]);
                    addTo(w.totals[2 * (start + r) + 1], part[r][1]);
                }
            }
        }
        for (int64_t i = 0; i < count; ++i)
        {
            float values[kWIDTH];
            store(values, valueOf(w.totals[2 * i]));
            store(values + kLANES, valueOf(w.totals[2 * i + 1]));
            storeChannels<T>(problem, first + w.dense[i].row, d, kWIDTH, values);
        }
    }
}

//! Whether the row is NaN by the contract: a score is NaN or +inf, or none is above -inf.
bool isUndefined(float const* scores, int64_t positions)
{
    bool isNan = false;
    float maximum = -__builtin_inff();
    for (int64_t j = 0; j < positions; ++j)
    {
        isNan |= scores[j] != scores[j];
        maximum = scores[j] > maximum ? scores[j] : maximum;
    }
    return isNan || maximum == __builtin_inff() || maximum == -__builtin_inff();
}

template <typename T>
void runTile(Problem const& problem, Workspace& w, int64_t first, int64_t rows)
{
    packQuery<T>(problem, w, first, rows);
    scoreTile<T>(problem, w, rows);
    // Scores of this magnitude or less can be neither NaN nor infinite, so nobody needs to look.
    float const largestQuery
        = largestMagnitude(Tensor<float>({w.query, 0, 0, 1}), 1, roundedUp(rows, kROWS) * problem.scoreChannels);
    float const bound = largestQuery * problem.largestKey * static_cast<float>(problem.scoreChannels);
    bool const isFinite = bound < 1e38F;

    int64_t const limit = problem.route == HSPAN_CPU_ROUTE_DENSE && problem.valueIsFinite ? 0
        : problem.route == HSPAN_CPU_ROUTE_GATHER || !problem.valueIsFinite               ? problem.positions
                                                                                          : problem.gatherLimit;
    int64_t denseRows = 0;
    double norms[kROWS];
    for (int64_t r = 0; r < rows; ++r)
    {
        if (r % kROWS == 0)
        {
            queryNorms(problem, w, r, norms);
        }
        float* scores = w.scores + r * w.stride;
        float const* maxima = w.maxima + r * w.groups * kLANES;
        if (!isFinite && isUndefined(scores, problem.positions))
        {
            storeNan<T>(problem, first + r);
            continue;
        }
        if (w.rowsUsed == kMOST_ROWS || w.listSize - w.listUsed - kLANES < limit)
        {
            gather<T>(problem, w);
        }
        double bound = thresholdBound(maxima, w.groups);
        Refinement const refinement = refinementOf<T>(problem, w, r, norms[r % kROWS], bound);
        int64_t const count = listCandidates(w, scores, maxima, floatBelow(bound), limit);
        if (count >= 0)
        {
            keepListed(w, first + r, count, bound, refinement);
        }
        else
        {
            w.dense[denseRows++] = {r, bound, refinement};
        }
    }
    refineDense<T>(problem, w, denseRows);
    for (int64_t i = 0; i < denseRows; ++i)
    {
        DenseRow const& row = w.dense[i];
        float* scores = w.scores + row.row * w.stride;
        int64_t const vectors = w.panels * 2;
        weigh(scores, vectors,
            row.refinement.isNeeded ? refinedThreshold(scores, vectors, row.refinement.bound)
                                    : threshold(scores, vectors, row.bound));
    }
    if (denseRows >= kLEAST_DENSE_ROWS || (denseRows > 0 && limit == 0))
    {
        multiplyDense<T>(problem, w, first, denseRows);
        return;
    }
    // Packing all values for a few rows would cost more than gathering theirs.
    for (int64_t i = 0; i < denseRows; ++i)
    {
        if (w.rowsUsed == kMOST_ROWS || w.listSize - w.listUsed - kLANES < problem.positions)
        {
            gather<T>(problem, w);
        }
        float const* weights = w.scores + w.dense[i].row * w.stride;
        int64_t const begin = w.listUsed;
        for (int64_t j = 0; j < problem.positions; ++j)
        {
            w.listed[w.listUsed] = weights[j];
            w.index[w.listUsed] = static_cast<int32_t>(j);
            w.listUsed += weights[j] > 0.0F ? 1 : 0;
        }
        int32_t const count = static_cast<int32_t>(w.listUsed - begin);
        w.rows[w.rowsUsed++] = {begin, static_cast<int32_t>(first + w.dense[i].row), count, -1, 0.0F, 0.0};
    }
}

template <typename T>
void runTyped(Problem& problem, void* memory)
{
    Workspace w = workspaceAt(problem, static_cast<char*>(memory));
    for (;;)
    {
        int64_t const tile = __atomic_fetch_add(&problem.nextTile, 1, __ATOMIC_RELAXED);
        int64_t const first = tile * problem.tileRows;
        if (first >= problem.positions)
        {
            break;
        }
        runTile<T>(problem, w, first, lesser(problem.tileRows, problem.positions - first));
    }
    gather<T>(problem, w);
}

template <typename T>
void prepareTyped(Problem& problem)
{
    Tensor<T> const key(problem.key);
    problem.largestKey = largestMagnitude(key, problem.scoreChannels, problem.positions);
    problem.largestKeyNorm = largestNorm(key, problem.scoreChannels, problem.positions);
    float const largestValue = largestMagnitude(Tensor<T>(problem.value), problem.valueChannels, problem.positions);
    problem.valueIsFinite = largestValue < __builtin_inff();
    for (int64_t j = 0; problem.packedKey != nullptr && j < problem.positions; j += kWIDTH)
    {
        packPositions<kWIDTH>(
            key, problem.scoreChannels, j, problem.positions, problem.packedKey + j * problem.scoreChannels);
    }
}

int64_t tileRows(int64_t positions)
{
    int64_t const fitting = kTILE_BYTES / (4 * (positions + 1)) / kROWS * kROWS;
    int64_t const needed = roundedUp(positions, kROWS);
    int64_t const rows = lesser(lesser(fitting, kMOST_TILE_ROWS), needed);
    return rows < kROWS ? kROWS : rows;
}

int64_t rowStep()
{
    return kROWS;
}

bool wantsPackedKey(Problem const& problem)
{
    // Float keys of NCHW are packed in passing. All keys at once take memory: half a percent of the scores' is allowed.
    bool const isCheap = problem.type == HSPAN_CPU_FLOAT && problem.key.positionStride == 1;
    return !isCheap || problem.scoreChannels * 200 <= problem.positions;
}

uint64_t packedKeyBytes(Problem const& problem)
{
    return static_cast<uint64_t>(roundedUp(problem.positions, kWIDTH) * problem.scoreChannels) * sizeof(float);
}

uint64_t workspaceBytes(Problem const& problem)
{
    return workspaceAt(problem, nullptr).bytes;
}

void prepare(Problem& problem)
{
    switch (problem.type)
    {
    case HSPAN_CPU_HALF: prepareTyped<Half>(problem); break;
    case HSPAN_CPU_BFLOAT16: prepareTyped<BFloat16>(problem); break;
    default: prepareTyped<float>(problem); break;
    }
}

void run(Problem& problem, void* workspace)
{
    switch (problem.type)
    {
    case HSPAN_CPU_HALF: runTyped<Half>(problem, workspace); break;
    case HSPAN_CPU_BFLOAT16: runTyped<BFloat16>(problem, workspace); break;
    default: runTyped<float>(problem, workspace); break;
    }
}

} // namespace
} // namespace hspan::cpu

//! The definition of a table that problem.h declares.
#define HSPAN_DEFINE_KERNEL(NAME)                                                                                      \
    namespace hspan::cpu                                                                                               \
    {                                                                                                                  \
    Kernel const NAME{                                                                                                 \
        kINSTRUCTION_SET, tileRows, rowStep, wantsPackedKey, packedKeyBytes, workspaceBytes, prepare, run};            \
    }
