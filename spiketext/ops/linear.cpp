// A linear map of binary spikes: sums of weight rows, and no product. Definition: `spike_linear` in linear.py.
// One routine does both directions: out[r] = sum of B[c] over the set bits c of row r.
//   forward:             bits [M, K] of the spikes,            B = weight^T [K, N]
//   gradient of weight:  bits [K, M], the same ones turned,    B = gradient of the output [M, N]
// A block of B, DEPTH rows x PANEL columns, is copied into the first cache, where many rows read it. A row's
// set bits in a block become a list of offsets, filled up to a multiple of four with a row of zeros; rows are visited
// in the order of their list's length, so that the loop over a list ends when the processor expects it.
// A row's sum is made in the same order whatever rows stand beside it and however many threads run.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

namespace {

using at::Tensor;

constexpr int64_t PANEL = 32, DEPTH = 192, ROWS = 2048;  // columns and rows of a block of B; rows of the output in a task
constexpr int64_t WORD = 64;
#ifdef __AVX512F__
constexpr int64_t REGISTER = 64, CHAINS = 4;  // bytes of a vector register; 32 of them hold four chains of additions
#else
constexpr int64_t REGISTER = 32, CHAINS = 2;  // 16 hold two
#endif

template <typename F>
struct Vector {
  typedef F type __attribute__((vector_size(REGISTER)));
  static constexpr int64_t lanes = REGISTER / sizeof(F), count = PANEL / lanes;
  static constexpr int64_t unit = PANEL * sizeof(F) / 8;  // offsets count 8 bytes, so that 16 bits are enough
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Lists of the set bits of some rows: block after block of DEPTH columns, in each the rows by length of their list, the
// lists one behind the other in that order.
struct Lists {
  std::vector<uint16_t> offsets;
  std::vector<uint32_t> order, quads, start;  // row and length of the i-th list of a block; where a block's lists begin

  void fill(const uint64_t* bits, int64_t words, int64_t rows, uint16_t unit) {
    const int64_t blocks = ceil_div(words * WORD, DEPTH);
    order.resize(blocks * rows), quads.resize(blocks * rows), start.resize(blocks);
    std::vector<uint32_t> length(rows);
    size_t end = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * DEPTH / WORD, stop = std::min(words, (b + 1) * DEPTH / WORD);
      uint32_t place[DEPTH / 4 + 2] = {0};
      size_t all = 0;
      for (int64_t r = 0; r < rows; ++r) {
        int64_t set = 0;
        for (int64_t w = first; w < stop; ++w) set += __builtin_popcountll(bits[r * words + w]);
        all += length[r] = ceil_div(set, 4);
        ++place[length[r] + 1];
      }
      for (int64_t q = 1; q < DEPTH / 4 + 2; ++q) place[q] += place[q - 1];
      for (int64_t r = 0; r < rows; ++r) order[b * rows + place[length[r]]++] = r;
      start[b] = end;
      offsets.resize(end + 4 * all);
      for (int64_t i = b * rows; i < (b + 1) * rows; ++i) {
        const uint64_t* row = bits + order[i] * words;
        quads[i] = length[order[i]];
        const size_t full = end + 4 * quads[i];
        for (int64_t w = first; w < stop; ++w)
          for (uint64_t left = row[w]; left; left &= left - 1)
            offsets[end++] = ((w - first) * WORD + __builtin_ctzll(left)) * unit;
        while (end < full) offsets[end++] = DEPTH * unit;  // the row of zeros
      }
    }
  }
};

// out [PANEL] (+)= the sum of the rows of a packed block that a list names
template <typename F>
inline void add_rows(const uint16_t* list, uint32_t quads, const char* block, typename Vector<F>::type* out, bool fresh) {
  using V = typename Vector<F>::type;
  constexpr int64_t C = Vector<F>::count;
  V sum[CHAINS][C];  // chains of additions that do not wait for each other
  for (int64_t c = 0; c < C; ++c) {
    sum[0][c] = fresh ? V{} : out[c];
    for (int64_t i = 1; i < CHAINS; ++i) sum[i][c] = V{};
  }
  for (; quads; --quads, list += 4)
    for (int64_t i = 0; i < 4; ++i) {
      const V* row = reinterpret_cast<const V*>(block + 8 * size_t(list[i]));
      for (int64_t c = 0; c < C; ++c) sum[i % CHAINS][c] += row[c];
    }
  for (int64_t c = 0; c < C; ++c) {
    for (int64_t gap = 1; gap < CHAINS; gap *= 2)
      for (int64_t i = 0; i < CHAINS; i += 2 * gap) sum[i][c] += sum[i + gap][c];
    out[c] = sum[0][c];
  }
}

// the start of some memory that 64-byte vectors can be read from; it holds `size` numbers
template <typename F>
F* aligned(std::vector<F>& memory, int64_t size) {
  memory.resize(size + 64 / sizeof(F));
  return reinterpret_cast<F*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t(63));
}

// bits [M, words], B [K, N] -> out [M, N]. A task is some rows of the output by one panel of columns.
template <typename F>
void sum_rows(const Tensor& bits, const Tensor& B, const F* bias, Tensor& out) {
  using V = typename Vector<F>::type;
  const int64_t M = bits.size(0), words = bits.size(1), K = B.size(0), N = B.size(1);
  const int64_t blocks = ceil_div(K, DEPTH), panels = ceil_div(N, PANEL), threads = at::get_num_threads();
  const int64_t cuts = std::max(ceil_div(threads, panels), ceil_div(M, ROWS));
  const uint64_t* set = reinterpret_cast<const uint64_t*>(bits.data_ptr<int64_t>());
  const F* from = B.data_ptr<F>();
  F* y = out.data_ptr<F>();
  std::vector<Lists> lists(cuts);
  at::parallel_for(0, cuts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t cut = begin; cut < end; ++cut) {
      const int64_t first = M * cut / cuts;
      lists[cut].fill(set + first * words, words, M * (cut + 1) / cuts - first, Vector<F>::unit);
    }
  });
  at::parallel_for(0, cuts * panels, 1, [&](int64_t begin, int64_t end) {
    std::vector<F> own_block, own_sums;
    F *block = aligned(own_block, (DEPTH + 1) * PANEL), *sums = aligned(own_sums, ceil_div(M, cuts) * PANEL);
    std::memset(block, 0, (DEPTH + 1) * PANEL * sizeof(F));  // the last row stays
    for (int64_t task = begin; task < end; ++task) {
      const int64_t cut = task / panels, column = task % panels * PANEL, columns = std::min(PANEL, N - column);
      const int64_t first = M * cut / cuts, rows = M * (cut + 1) / cuts - first;
      const Lists& list = lists[cut];
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t depth = std::min(DEPTH, K - b * DEPTH);
        for (int64_t k = 0; k < depth; ++k)
          std::memcpy(block + k * PANEL, from + (b * DEPTH + k) * N + column, columns * sizeof(F));
        const uint16_t* next = list.offsets.data() + list.start[b];
        for (int64_t i = b * rows; i < (b + 1) * rows; next += 4 * list.quads[i++])
          add_rows<F>(next, list.quads[i], reinterpret_cast<const char*>(block),
                      reinterpret_cast<V*>(sums + list.order[i] * PANEL), b == 0);
      }
      for (int64_t r = 0; r < rows; ++r) {
        F* __restrict__ to = y + (first + r) * N + column;
        const F* __restrict__ sum = sums + r * PANEL;
        for (int64_t n = 0; n < columns; ++n) to[n] = bias ? sum[n] + bias[column + n] : sum[n];
      }
    }
  });
}

template <typename F>
uint64_t word_of(const F* x, int64_t count, bool& binary) {
  uint64_t word = 0;
  int64_t j = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(F) == 4) {
    const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1);
    for (; j + 16 <= count; j += 16) {
      const __m512 v = _mm512_loadu_ps(x + j);
      const __mmask16 fired = _mm512_cmp_ps_mask(v, zero, _CMP_NEQ_UQ);
      binary &= fired == _mm512_cmp_ps_mask(v, one, _CMP_EQ_OQ);
      word |= uint64_t(fired) << j;
    }
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(F) == 4) {
    const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1);
    for (; j + 8 <= count; j += 8) {
      const __m256 v = _mm256_loadu_ps(x + j);
      const int fired = _mm256_movemask_ps(_mm256_cmp_ps(v, zero, _CMP_NEQ_UQ));
      binary &= fired == _mm256_movemask_ps(_mm256_cmp_ps(v, one, _CMP_EQ_OQ));
      word |= uint64_t(fired) << j;
    }
  }
#endif
  for (; j < count; ++j) {
    binary &= x[j] == F(0) || x[j] == F(1);
    word |= uint64_t(x[j] != F(0)) << j;
  }
  return word;
}

// spikes [M, K] -> bits [M, ceil(K / 64)], and how many are set; -1 when a value is neither 0 nor 1
std::tuple<Tensor, int64_t> spike_bits(const Tensor& spikes) {
  const int64_t M = spikes.size(0), K = spikes.size(1), words = ceil_div(K, WORD);
  Tensor bits = at::empty({M, words}, at::kLong);
  uint64_t* out = reinterpret_cast<uint64_t*>(bits.data_ptr<int64_t>());
  std::atomic<int64_t> set{0};
  std::atomic<bool> binary{true};
  AT_DISPATCH_FLOATING_TYPES(spikes.scalar_type(), "spike_bits", ([&] {
    const scalar_t* x = spikes.data_ptr<scalar_t>();
    at::parallel_for(0, M, 32, [&](int64_t begin, int64_t end) {
      int64_t mine = 0;
      bool clean = true;
      for (int64_t r = begin; r < end && clean; ++r)  // integers are found out in the first row
        for (int64_t w = 0; w < words; ++w) {
          const uint64_t word = word_of(x + r * K + w * WORD, std::min(WORD, K - w * WORD), clean);
          out[r * words + w] = word;
          mine += __builtin_popcountll(word);
        }
      set += mine;
      if (!clean) binary = false;
    });
  }));
  return {bits, binary ? set.load() : -1};
}

void transpose(uint64_t (&square)[WORD]) {  // 64 x 64 bits: swap ever smaller corners
  uint64_t mask = 0x00000000FFFFFFFFULL;
  for (int64_t j = 32; j; j >>= 1, mask ^= mask << j)
    for (int64_t k = 0; k < WORD; k = ((k | j) + 1) & ~j) {
      const uint64_t t = ((square[k] >> j) ^ square[k | j]) & mask;
      square[k] ^= t << j, square[k | j] ^= t;
    }
}

Tensor turned(const Tensor& bits, int64_t K) {  // [M, ceil(K / 64)] -> [K, ceil(M / 64)]
  const int64_t M = bits.size(0), words = bits.size(1), columns = ceil_div(M, WORD);
  Tensor out = at::empty({K, columns}, at::kLong);
  const uint64_t* from = reinterpret_cast<const uint64_t*>(bits.data_ptr<int64_t>());
  uint64_t* to = reinterpret_cast<uint64_t*>(out.data_ptr<int64_t>());
  at::parallel_for(0, words, 1, [&](int64_t begin, int64_t end) {
    uint64_t square[WORD];
    for (int64_t w = begin; w < end; ++w)
      for (int64_t m = 0; m < columns; ++m) {
        for (int64_t i = 0; i < WORD; ++i) square[i] = m * WORD + i < M ? from[(m * WORD + i) * words + w] : 0;
        transpose(square);
        for (int64_t i = 0; i < std::min(WORD, K - w * WORD); ++i) to[(w * WORD + i) * columns + m] = square[i];
      }
  });
  return out;
}

// bits [M, ceil(K / 64)], weight [N, K], bias [N] -> [M, N]
Tensor spike_linear(const Tensor& bits, const Tensor& weight, const std::optional<Tensor>& bias) {
  Tensor out = at::empty({bits.size(0), weight.size(0)}, weight.options());
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "spike_linear", ([&] {
    sum_rows<scalar_t>(bits, weight.t().contiguous(), bias ? bias->data_ptr<scalar_t>() : nullptr, out);
  }));
  return out;
}

// bits [M, ceil(K / 64)], gradient of the output [M, N] -> gradient of the weight [N, K] (as a transposed view)
Tensor spike_linear_weight_grad(const Tensor& bits, const Tensor& grad, int64_t K) {
  Tensor out = at::empty({K, grad.size(1)}, grad.options());
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "spike_linear_weight_grad",
                             ([&] { sum_rows<scalar_t>(turned(bits, K), grad, nullptr, out); }));
  return out.t();
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(spiketext, library) {
  library.def("spike_bits", &spike_bits);
  library.def("spike_linear", &spike_linear);
  library.def("spike_linear_weight_grad", &spike_linear_weight_grad);
}
