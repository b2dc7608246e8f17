// A linear map of spikes as sums that are looked up, and no product. Definition: `spike_linear` in linear.py.
// One routine does both directions: out[r] = sum over c of digit[r, c] * B[c], digits 0 and 1, or -1, 0 and 1.
//   forward:             digits [M, K], the spikes,            B = weight^T [K, N]
//   gradient of weight:  digits [K, M], the same ones turned,  B = gradient of the output [M, N]
// Four columns of zeros and ones (three of -1, 0, 1) have 16 (27) patterns. The sum of B's rows for each pattern is made
// once, and every row of the output adds the one that it needs: one addition in place of four (three), whatever the
// rate. (The method is that of Arlazarov, Dinic, Kronrod and Faradzev, 1970.) The tables of a block, GROUPS groups of
// columns by a PANEL of B, stay in the first cache, where many rows read them.
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
#include <type_traits>
#include <vector>

namespace {

using at::Tensor;

constexpr int64_t PANEL = 128, GROUPS = 8, ROWS = 2048;  // bytes of a row of a table; groups of a block; rows of a task
constexpr int64_t WORD = 64;
#ifdef __AVX512F__
constexpr int64_t REGISTER = 64;
#else
constexpr int64_t REGISTER = 32;
#endif

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a group of columns becomes a place in a table: the number whose digits are its spikes, lowest column first.
template <int BASE>
struct Code {
  static constexpr int64_t GROUP = BASE == 2 ? 4 : 3, ENTRIES = BASE == 2 ? 16 : 27, COLUMNS = GROUPS * GROUP;
  static constexpr uint64_t PAIR = (1 << 2 * GROUP) - 1;  // the bits of two groups
  uint16_t place[PAIR + 1];                               // two groups at once, 8 bits each

  Code() {
    for (uint64_t bits = 0; bits <= PAIR; ++bits) {
      uint16_t number[2] = {0, 0};
      for (int64_t j = GROUP - 1; j >= 0; --j)
        for (int64_t half = 0; half < 2; ++half)
          number[half] = number[half] * BASE + (bits >> (half * GROUP + j) & 1);
      place[bits] = number[0] | number[1] << 8;
    }
  }

  static uint64_t cut(const uint64_t* row, int64_t words, int64_t column) {  // the bits of a block
    const int64_t word = column / WORD, shift = column % WORD;
    uint64_t bits = row[word] >> shift;
    if (shift + COLUMNS > WORD && word + 1 < words) bits |= row[word + 1] << (WORD - shift);
    return bits;
  }

  // bits [BASE - 1, all rows, words] from some row on -> places [blocks, rows, GROUPS]
  void places(const uint64_t* bits, int64_t plane, int64_t words, int64_t rows, int64_t blocks, uint8_t* out) const {
    const uint16_t silent = BASE == 2 ? 0 : ENTRIES / 2 * 0x101;
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t r = 0; r < rows; ++r, out += GROUPS) {
        uint64_t on = cut(bits + r * words, words, b * COLUMNS), off = 0;
        if constexpr (BASE == 3) off = cut(bits + plane + r * words, words, b * COLUMNS);
        uint16_t two[GROUPS / 2];
        for (int64_t i = 0; i < GROUPS / 2; ++i, on >>= 2 * GROUP, off >>= 2 * GROUP)
          two[i] = silent + place[on & PAIR] - (BASE == 3 ? place[off & PAIR] : 0);
        std::memcpy(out, two, sizeof(two));
      }
  }
};

template <typename F>
struct Panel {
  typedef F type __attribute__((vector_size(REGISTER)));
  static constexpr int64_t vectors = PANEL / REGISTER, columns = PANEL / sizeof(F);
};

// the tables of one group: rows of B, GROUP panels -> ENTRIES panels, every pattern's sum from its own terms alone
template <int BASE, typename V>
void tabulate(const V* rows, V* table) {
  constexpr int64_t C = PANEL / REGISTER;
  for (int64_t c = 0; c < C; ++c) table[c] = V{};
  for (int64_t j = Code<BASE>::GROUP - 1, size = 1; j >= 0; --j, size *= BASE)
    for (int64_t entry = size - 1; entry >= 0; --entry)  // from the end: places grow, none is read after it was written
      for (int64_t c = 0; c < C; ++c) {
        const V known = table[entry * C + c], row = rows[j * C + c];
        V* to = table + entry * BASE * C + c;
        if constexpr (BASE == 2) {
          to[0] = known, to[C] = known + row;
        } else {
          to[0] = known - row, to[C] = known, to[2 * C] = known + row;
        }
      }
}

// out [rows] = before [rows] + the entries at the places, one from each group of a block; strides in vectors (before)
// and in numbers (out). Only the first USED vectors of a panel are summed.
template <int BASE, typename F, int64_t USED>
void add_entries(const typename Panel<F>::type* tables, const uint8_t*& places, int64_t rows,
                 const typename Panel<F>::type* before, int64_t stride, F* out, int64_t out_stride) {
  using V = typename Panel<F>::type;
  typedef V Unaligned __attribute__((aligned(sizeof(F)), may_alias));
  constexpr int64_t C = Panel<F>::vectors;
  for (int64_t r = 0; r < rows; ++r, places += GROUPS, before += stride, out += out_stride) {
    V sum[USED];
    for (int64_t c = 0; c < USED; ++c) sum[c] = before[c];
    for (int64_t line = 0; line < PANEL; line += 64)  // a row of the result that is far from the last one
      __builtin_prefetch(reinterpret_cast<const char*>(out + 12 * out_stride) + line, 1);
    for (int64_t g = 0; g < GROUPS; ++g) {
      const V* entry = tables + (g * Code<BASE>::ENTRIES + size_t(places[g])) * C;
      for (int64_t c = 0; c < USED; ++c) sum[c] += entry[c];
    }
    for (int64_t c = 0; c < USED; ++c) reinterpret_cast<Unaligned*>(out)[c] = sum[c];
  }
}

// the start of some memory that 64-byte vectors can be read from; it holds `size` numbers
template <typename F>
F* aligned(std::vector<F>& memory, int64_t size) {
  memory.resize(size + 64 / sizeof(F));
  return reinterpret_cast<F*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t(63));
}

// bits [BASE - 1, M, words], B [K, N] -> out [M, N]. A task is some rows of the output by one panel of columns.
// E: the numbers of the tables, W: those of B, F: those of the output. Bytes are summed in 16 bits, as many columns as
// cannot overflow; then scale [N] makes them floats.
template <int BASE, typename E, typename W, typename F>
void sum_rows(const Tensor& bits, const Tensor& B, const F* scale, const F* bias, Tensor& out) {
  using V = typename Panel<E>::type;
  constexpr bool BYTES = std::is_same_v<W, int8_t>;
  constexpr int64_t C = Panel<E>::vectors, WIDTH = Panel<E>::columns, DEPTH = Code<BASE>::COLUMNS;
  constexpr int64_t GROUP = Code<BASE>::GROUP, ENTRIES = Code<BASE>::ENTRIES, SAFE = 255 / DEPTH;
  const int64_t M = bits.size(1), words = bits.size(2), K = B.size(0), N = B.size(1);
  const int64_t row_stride = B.stride(0), column_stride = B.stride(1);
  const int64_t blocks = ceil_div(K, DEPTH), panels = ceil_div(N, WIDTH), threads = at::get_num_threads();
  const int64_t cuts = std::max(ceil_div(threads, panels), ceil_div(M, ROWS));
  const uint64_t* set = reinterpret_cast<const uint64_t*>(bits.data_ptr<int64_t>());
  const W* from = B.data_ptr<W>();
  F* y = out.data_ptr<F>();
  const Code<BASE> code;
  std::vector<uint8_t> places(M * blocks * GROUPS);
  at::parallel_for(0, cuts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t cut = begin; cut < end; ++cut) {
      const int64_t first = M * cut / cuts, rows = M * (cut + 1) / cuts - first;
      code.places(set + first * words, M * words, words, rows, blocks, places.data() + first * blocks * GROUPS);
    }
  });
  at::parallel_for(0, cuts * panels, 1, [&](int64_t begin, int64_t end) {
    std::vector<E> own_tables, own_rows, own_sums;
    V* tables = reinterpret_cast<V*>(aligned(own_tables, GROUPS * ENTRIES * WIDTH));
    E *lines = aligned(own_rows, DEPTH * WIDTH), *sums = aligned(own_sums, ceil_div(M, cuts) * WIDTH);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t cut = task / panels, column = task % panels * WIDTH, columns = std::min(WIDTH, N - column);
      const int64_t first = M * cut / cuts, rows = M * (cut + 1) / cuts - first;
      const int64_t lead = column_stride == 1 ? DEPTH : columns, far = column_stride == 1 ? row_stride : column_stride;
      const uint8_t* next = places.data() + first * blocks * GROUPS;
      F* corner_of_y = y + first * N + column;
      F shift[WIDTH] = {};
      if (bias) std::copy_n(bias + column, columns, shift);
      V start[C] = {};
      if constexpr (!BYTES) std::memcpy(start, shift, PANEL);
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t depth = std::min(DEPTH, K - b * DEPTH);
        std::memset(lines, 0, DEPTH * PANEL);
        const W* corner = from + b * DEPTH * row_stride + column * column_stride;
        if (column_stride == 1)
          for (int64_t k = 0; k < depth; ++k) std::copy_n(corner + k * row_stride, columns, lines + k * WIDTH);
        else
          for (int64_t n = 0; n < columns; ++n)
            for (int64_t k = 0; k < depth; ++k) lines[k * WIDTH + n] = corner[n * column_stride + k * row_stride];
        for (int64_t g = 0; g < GROUPS; ++g)
          tabulate<BASE>(reinterpret_cast<const V*>(lines) + g * GROUP * C, tables + g * ENTRIES * C);
        if (b + 1 < blocks)  // the next block of B is on its way while this one is summed
          for (int64_t i = 0; i < lead; ++i) {
            const W* line = corner + DEPTH * row_stride + i * far;
            __builtin_prefetch(line, 0, 2), __builtin_prefetch(line + 64 / sizeof(W), 0, 2);
          }
        const bool begins = BYTES ? b % SAFE == 0 : b == 0, last = b + 1 == blocks;
        const V* before = begins ? start : reinterpret_cast<const V*>(sums);
        const auto add = columns * sizeof(E) <= REGISTER       ? add_entries<BASE, E, 1>
                         : columns * sizeof(E) <= PANEL / 2 ? add_entries<BASE, E, C / 2>
                                                            : add_entries<BASE, E, C>;
        if constexpr (BYTES) {
          add(tables, next, rows, before, begins ? 0 : C, sums, WIDTH);
          if (last || (b + 1) % SAFE == 0) {
            const F* by = scale + column;
            for (int64_t r = 0; r < rows; ++r) {
              F* to = corner_of_y + r * N;
              const F* base = b < SAFE ? shift : to;
              const E* sum = sums + r * WIDTH;
#pragma omp simd
              for (int64_t n = 0; n < columns; ++n) to[n] = base[n] + by[n] * F(sum[n]);
            }
          }
        } else if (last && columns == WIDTH) {
          add(tables, next, rows, before, begins ? 0 : C, corner_of_y, N);
        } else {
          add(tables, next, rows, before, begins ? 0 : C, sums, WIDTH);
          for (int64_t r = 0; last && r < rows; ++r) std::copy_n(sums + r * WIDTH, columns, corner_of_y + r * N);
        }
      }
    }
  });
}

template <typename E, typename W, typename F>
void sums(const Tensor& bits, const Tensor& B, const F* scale, const F* bias, Tensor& out) {
  if (bits.size(0) == 1)
    sum_rows<2, E, W, F>(bits, B, scale, bias, out);
  else
    sum_rows<3, E, W, F>(bits, B, scale, bias, out);
}

struct Signs {
  uint64_t on, off;
};

// one bit each for up to 64 numbers that are 1, and that are -1; `clean` becomes false when there are others but 0
template <typename F>
Signs signs_of(const F* x, int64_t count, bool& clean) {
  Signs word{0, 0};
  int64_t j = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(F) == 4) {
    const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1), minus = _mm512_set1_ps(-1);
    for (; j + 16 <= count; j += 16) {
      const __m512 v = _mm512_loadu_ps(x + j);
      const uint32_t on = _mm512_cmp_ps_mask(v, one, _CMP_EQ_OQ), off = _mm512_cmp_ps_mask(v, minus, _CMP_EQ_OQ);
      clean &= (on | off) == _mm512_cmp_ps_mask(v, zero, _CMP_NEQ_UQ);
      word.on |= uint64_t(on) << j, word.off |= uint64_t(off) << j;
    }
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(F) == 4) {
    const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1), minus = _mm256_set1_ps(-1);
    for (; j + 8 <= count; j += 8) {
      const __m256 v = _mm256_loadu_ps(x + j);
      const int on = _mm256_movemask_ps(_mm256_cmp_ps(v, one, _CMP_EQ_OQ));
      const int off = _mm256_movemask_ps(_mm256_cmp_ps(v, minus, _CMP_EQ_OQ));
      clean &= (on | off) == _mm256_movemask_ps(_mm256_cmp_ps(v, zero, _CMP_NEQ_UQ));
      word.on |= uint64_t(on) << j, word.off |= uint64_t(off) << j;
    }
  }
#endif
  for (; j < count; ++j) {
    clean &= x[j] == F(0) || x[j] == F(1) || x[j] == F(-1);
    word.on |= uint64_t(x[j] == F(1)) << j, word.off |= uint64_t(x[j] == F(-1)) << j;
  }
  return word;
}

// Where rows of numbers stand: sizes and strides of [..., K], of which K is dense; windows may overlap.
struct Rows {
  std::vector<int64_t> sizes, strides;

  explicit Rows(const Tensor& x) : sizes(x.sizes().vec()), strides(x.strides().vec()) {
    sizes.pop_back(), strides.pop_back();
  }

  int64_t offset(int64_t row) const {
    int64_t sum = 0;
    for (int64_t d = int64_t(sizes.size()) - 1; d >= 0; row /= sizes[d], --d) sum += row % sizes[d] * strides[d];
    return sum;
  }
};

// spikes [..., K] -> bits [P, M, ceil(K / 64)]: P = 1 for 0 and 1; P = 2, ones and minus ones; P = 0 for other numbers
Tensor spike_bits(const Tensor& spikes) {
  const int64_t K = spikes.size(-1), M = spikes.numel() / K, words = ceil_div(K, WORD);
  TORCH_CHECK(spikes.stride(-1) == 1 || K == 1, "spike_bits: the numbers of a row must stand side by side");
  const Rows rows(spikes);
  Tensor bits = at::empty({2, M, words}, at::kLong);
  uint64_t *on = reinterpret_cast<uint64_t*>(bits.data_ptr<int64_t>()), *off = on + M * words;
  std::atomic<bool> all_clean{true}, any_off{false};
  AT_DISPATCH_FLOATING_TYPES(spikes.scalar_type(), "spike_bits", ([&] {
    const scalar_t* x = spikes.data_ptr<scalar_t>();
    at::parallel_for(0, M, 32, [&](int64_t begin, int64_t end) {
      bool clean = true;
      uint64_t seen = 0;
      for (int64_t r = begin; r < end && clean; ++r) {  // other numbers are found out in the first row
        const scalar_t* row = x + rows.offset(r);
        for (int64_t w = 0; w < words; ++w) {
          const Signs word = signs_of(row + w * WORD, std::min(WORD, K - w * WORD), clean);
          on[r * words + w] = word.on, off[r * words + w] = word.off;
          seen |= word.off;
        }
      }
      if (!clean) all_clean = false;
      if (seen) any_off = true;
    });
  }));
  if (!all_clean) return bits.narrow(0, 0, 0);
  return any_off ? bits : bits.narrow(0, 0, 1).clone();
}

void transpose(uint64_t (&square)[WORD]) {  // 64 x 64 bits: swap ever smaller corners
  uint64_t mask = 0x00000000FFFFFFFFULL;
  for (int64_t j = 32; j; j >>= 1, mask ^= mask << j)
    for (int64_t k = 0; k < WORD; k = ((k | j) + 1) & ~j) {
      const uint64_t t = ((square[k] >> j) ^ square[k | j]) & mask;
      square[k] ^= t << j, square[k | j] ^= t;
    }
}

Tensor turned(const Tensor& bits, int64_t K) {  // [P, M, ceil(K / 64)] -> [P, K, ceil(M / 64)]
  const int64_t planes = bits.size(0), M = bits.size(1), words = bits.size(2), columns = ceil_div(M, WORD);
  Tensor out = at::empty({planes, K, columns}, at::kLong);
  at::parallel_for(0, planes * words, 1, [&](int64_t begin, int64_t end) {
    uint64_t square[WORD];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / words, w = task % words;
      const uint64_t* from = reinterpret_cast<const uint64_t*>(bits.data_ptr<int64_t>()) + plane * M * words;
      uint64_t* to = reinterpret_cast<uint64_t*>(out.data_ptr<int64_t>()) + plane * K * columns;
      for (int64_t m = 0; m < columns; ++m) {
        for (int64_t i = 0; i < WORD; ++i) square[i] = m * WORD + i < M ? from[(m * WORD + i) * words + w] : 0;
        transpose(square);
        for (int64_t i = 0; i < std::min(WORD, K - w * WORD); ++i) to[(w * WORD + i) * columns + m] = square[i];
      }
    }
  });
  return out;
}

// bits [P, M, ceil(K / 64)], weight [N, K], bias [N] -> [M, N]
Tensor spike_linear(const Tensor& bits, const Tensor& weight, const std::optional<Tensor>& bias) {
  Tensor out = at::empty({bits.size(1), weight.size(0)}, weight.options());
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "spike_linear", ([&] {
    const scalar_t* shift = bias ? bias->data_ptr<scalar_t>() : nullptr;
    sums<scalar_t, scalar_t, scalar_t>(bits, weight.t(), nullptr, shift, out);
  }));
  return out;
}

// bits [P, M, ceil(K / 64)], weight [N, K] in bytes, scale [N], bias [N] -> [M, N]
Tensor spike_linear_int8(const Tensor& bits, const Tensor& weight, const Tensor& scale, const std::optional<Tensor>& bias) {
  Tensor out = at::empty({bits.size(1), weight.size(0)}, scale.options());
  const float* shift = bias ? bias->data_ptr<float>() : nullptr;
  sums<int16_t, int8_t, float>(bits, weight.t(), scale.data_ptr<float>(), shift, out);
  return out;
}

// bits [P, M, ceil(K / 64)], gradient of the output [M, N] -> gradient of the weight [N, K] (as a transposed view)
Tensor spike_linear_weight_grad(const Tensor& bits, const Tensor& grad, int64_t K) {
  Tensor out = at::empty({K, grad.size(1)}, grad.options());
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "spike_linear_weight_grad",
                             ([&] { sums<scalar_t, scalar_t, scalar_t>(turned(bits, K), grad, nullptr, nullptr, out); }));
  return out.t();
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(spiketext, library) {
  library.def("spike_bits", &spike_bits);
  library.def("spike_linear", &spike_linear);
  library.def("spike_linear_int8", &spike_linear_int8);
  library.def("spike_linear_weight_grad", &spike_linear_weight_grad);
}
