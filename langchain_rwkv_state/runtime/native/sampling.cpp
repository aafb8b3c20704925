// Chooses the next token from rows of logits on a CPU: what `choices.py` of the engine says in NumPy,
// which is the oracle of its tests, id for id.
//
// It knows nothing of requests: a row comes with its settings, its penalties and 64 random bits.
// Built without -ffast-math and without fused products, since every float here is to be the same bit
// for bit in NumPy; what is summed are whole numbers, so that order does not matter either. Top-p's
// border is not looked for, since that takes sorting: a token is drawn from all, and is within the
// border if what is likelier weighs less than top-p; if not, the next is drawn from what is likelier.
//
// V vocabulary, in blocks of BLOCK ids.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int64_t BLOCK = 512;
constexpr float NOT_THERE = -std::numeric_limits<float>::infinity();

enum Wanted : int64_t { LOOK = 0, BEST = 1, DRAW = 2 };

struct Row {
    const float* logits;
    const uint32_t* allowed;              // bit i % 32 of word i / 32 for id i; null for all
    const int64_t* ids;                   // those that are penalised, each once
    const float* penalties;               // what is subtracted from their logits
    int64_t penalised;
    double top_p;
    int64_t top_k;                        // 0 for all
    float temperature;
    uint64_t bits;                        // random
    int64_t wanted;
    int64_t finite, best, chosen;         // found; `chosen` is -1 where no id is allowed
};

// What may be drawn: ids with a higher score, or as high a score and a lower id.
struct Limit {
    float score;
    int64_t id;
};

// exp(-below) in whole 2^-36, for below >= 0 or infinite: by Cephes' expf, relative error 2e-7.
INLINE float exponential(float below) {
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest whole number
    const float x = below < 32.0f ? below : 32.0f;  // e^-32 is nothing in whole 2^-36
    const float n = (x * 1.44269504088896341f + ROUND) - ROUND;
    const float f = (n * 0.693359375f - x) + n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    const float power = ((p * f) * f + f) + 1.0f;
    int32_t bits;
    std::memcpy(&bits, &power, sizeof bits);
    bits -= static_cast<int32_t>(n) << 23;
    float scaled;
    std::memcpy(&scaled, &bits, sizeof scaled);
    return scaled;
}

INLINE int64_t whole(float mass) {
    const double shifted = static_cast<double>(mass) + 98304.0;  // 1.5 * 2^16, whose last bit is 2^-36
    int64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x40F8000000000000;
}

INLINE uint64_t next(uint64_t& bits) {    // splitmix64
    uint64_t z = bits += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
}

INLINE bool within(float score, float least, bool equal_too) {
    return (score > least) | (equal_too & (score == least));
}

// One thread's room for one row: whole blocks, what is beyond V is not there.
class Chooser {
public:
    explicit Chooser(int64_t V)
        : V_(V), blocks_((V + BLOCK - 1) / BLOCK), scores_(blocks_ * BLOCK), masses_(blocks_ * BLOCK),
          weights_(blocks_ * BLOCK), most_(blocks_), sums_(blocks_) {}

    int64_t V() const { return V_; }

    void choose(Row& row) {
        look(row);
        if (row.wanted == LOOK || !row.finite) return;
        if (row.allowed == nullptr && row.penalised == 0 && row.wanted == BEST) {
            row.chosen = row.best;
            return;
        }
        for (int64_t i = V_; i < blocks_ * BLOCK; i++) scores_[i] = NOT_THERE;  // `look` left others
        if (row.allowed != nullptr) forbid(row.allowed);
        for (int64_t i = 0; i < row.penalised; i++) scores_[row.ids[i]] -= row.penalties[i];
        int64_t best = row.best;
        if (row.allowed != nullptr || row.penalised > 0) {
            for (int64_t b = 0; b < blocks_; b++) most_[b] = highest(&scores_[b * BLOCK]);
            best = first_highest(scores_.data());
        }
        if (scores_[best] == NOT_THERE)
            row.chosen = -1;
        else
            row.chosen = row.wanted == BEST ? best : draw(row, scores_[best]);
    }

private:
    // Finds the best of a row and whether all is finite, and keeps its scores.
    void look(Row& row) {
        int32_t extreme = 0;
        for (int64_t b = 0; b < blocks_; b++) {
            const float* from = row.logits + b * BLOCK;
            float* to = &scores_[b * BLOCK];
            const int64_t size = std::min(BLOCK, V_ - b * BLOCK);
            std::memcpy(to, from, size * sizeof(float));
            for (int64_t j = size; j < BLOCK; j++) to[j] = from[0];
            int32_t most = 0;
            for (int64_t j = 0; j < BLOCK; j++) {
                int32_t bits;
                std::memcpy(&bits, to + j, sizeof bits);
                most = std::max(most, bits & 0x7FFFFFFF);
            }
            extreme = std::max(extreme, most);
            most_[b] = highest(to);
        }
        row.finite = extreme < 0x7F800000;
        row.best = first_highest(scores_.data());
    }

    // The highest of a block, by way of whole numbers in the same order.
    static float highest(const float* from) {
        int32_t most = std::numeric_limits<int32_t>::min();
        for (int64_t j = 0; j < BLOCK; j++) {
            int32_t bits;
            std::memcpy(&bits, from + j, sizeof bits);
            most = std::max(most, bits ^ ((bits >> 31) & 0x7FFFFFFF));
        }
        most ^= (most >> 31) & 0x7FFFFFFF;
        float found;
        std::memcpy(&found, &most, sizeof found);
        return found;
    }

    int64_t first_highest(const float* scores) const {
        int64_t block = 0;
        for (int64_t b = 1; b < blocks_; b++)
            if (most_[b] > most_[block]) block = b;
        int64_t id = block * BLOCK;
        while (id + 1 < V_ && scores[id] != most_[block]) id++;
        return id;
    }

    void forbid(const uint32_t* allowed) {
        for (int64_t w = 0; w * 32 < V_; w++) {
            const uint32_t word = allowed[w];
            float* to = &scores_[w * 32];
            if (word == 0xFFFFFFFF) continue;
            for (int j = 0; j < 32; j++) to[j] = word >> j & 1 ? to[j] : NOT_THERE;
        }
    }

    int64_t draw(const Row& row, float best) {
        const float *scores = scores_.data(), temperature = row.temperature;
        float *masses = masses_.data(), *weights = masses;
        const int64_t end = blocks_ * BLOCK;
        for (int64_t i = 0; i < end; i++) masses[i] = exponential(best - scores[i]);
        if (temperature != 1.0f) {
            weights = weights_.data();
            for (int64_t i = 0; i < end; i++) weights[i] = exponential((best - scores[i]) / temperature);
        }
        Limit limit = {NOT_THERE, V_};
        int64_t goal = std::numeric_limits<int64_t>::max();
        int64_t total = sum(masses, limit);
        if (row.top_p < 1.0) {
            goal = static_cast<int64_t>(std::ceil(row.top_p * static_cast<double>(total)));
            goal = std::max<int64_t>(1, std::min(goal, total));
        }
        if (weights != masses) total = sum(weights, limit);
        uint64_t bits = row.bits;
        for (;;) {
            const auto place = static_cast<unsigned __int128>(next(bits)) * static_cast<uint64_t>(total);
            const int64_t id = at(weights, limit, static_cast<int64_t>(place >> 64));
            const Limit likelier = {scores[id], 0}, before = {scores[id], id};
            const int64_t mass = row.top_p < 1.0 ? sum(masses, likelier) : 0;
            if (mass >= goal) {
                limit = likelier;
            } else if (row.top_k > 0 && count(before) >= row.top_k) {
                limit = before;
            } else {
                return id;
            }
            total = sum(weights, limit);
        }
    }

    // Sums what is within a limit, and keeps the sums of blocks.
    int64_t sum(const float* masses, Limit limit) {
        int64_t total = 0;
        each_part(limit, [&](int64_t from, int64_t to, bool equal_too) {
            const float *score = scores_.data() + from, *mass = masses + from;
            int64_t found = 0;
            for (int64_t j = 0; j < to - from; j++)
                found += within(score[j], limit.score, equal_too) ? whole(mass[j]) : 0;
            int64_t& kept = sums_[from / BLOCK];
            kept = from % BLOCK == 0 ? found : kept + found;
            total += found;
        });
        return total;
    }

    int64_t count(Limit limit) const {
        int64_t total = 0;
        each_part(limit, [&](int64_t from, int64_t to, bool equal_too) {
            int32_t found = 0;
            for (int64_t i = from; i < to; i++) found += within(scores_[i], limit.score, equal_too);
            total += found;
        });
        return total;
    }

    // The id at which the sum of weights within a limit, as `sum` left it, comes to more than `place`.
    int64_t at(const float* weights, Limit limit, int64_t place) const {
        int64_t block = 0;
        while (place >= sums_[block]) place -= sums_[block++];
        for (int64_t id = block * BLOCK;; id++) {
            if (within(scores_[id], limit.score, id < limit.id)) place -= whole(weights[id]);
            if (place < 0) return id;
        }
    }

    // Goes through all blocks; that in which a limit's id lies is cut there.
    template <class Work>
    void each_part(Limit limit, Work work) const {
        for (int64_t from = 0; from < blocks_ * BLOCK; from += BLOCK) {
            const int64_t to = from + BLOCK;
            if (limit.id <= from || limit.id >= to) {
                work(from, to, limit.id >= to);
            } else {
                work(from, limit.id, true);
                work(limit.id, to, false);
            }
        }
    }

    int64_t V_, blocks_;
    std::vector<float> scores_;
    std::vector<float> masses_, weights_; // exp(score - best), exp((score - best) / temperature)
    std::vector<float> most_;             // of each block, the highest score
    std::vector<int64_t> sums_;           // of each block
};

Chooser& chooser(int64_t V) {
    static thread_local std::vector<Chooser> kept;
    if (kept.empty() || kept[0].V() != V) {
        kept.clear();
        kept.emplace_back(V);
    }
    return kept[0];
}

}  // namespace

extern "C" {

// Chooses from rows of V logits, each by its own settings; see `Row`.
void choose(Row* rows, int64_t count, int64_t V, int64_t threads) {
    if (count == 1) {
        chooser(V).choose(rows[0]);
        return;
    }
    std::atomic<int64_t> taken{0};
    #pragma omp parallel num_threads(threads)
    {
        Chooser& mine = chooser(V);
        for (int64_t row; (row = taken.fetch_add(1, std::memory_order_relaxed)) < count;)
            mine.choose(rows[row]);
    }
}

}  // extern "C"
