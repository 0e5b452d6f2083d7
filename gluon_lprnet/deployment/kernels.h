/* Arithmetic of the operator library: strips of feature maps in blocks of channels, in float32 and in 8 bits.
 *
 * A feature map of C channels is an array (ceil(C / BLOCK), height, width, BLOCK), whose channels beyond C are 0. Part
 * of one is a View: the blocks are `pitch` elements apart, and the pixels of a block follow one another.
 *
 * In 8 bits an element is a whole number, from 0 to 255 or from -127 to 127, and counts steps of a size that the layers
 * know. Sums of products are exact. What becomes of a sum is defined by Rounding, in float32 without fused
 * multiply-adds, so that it is the same on every processor.
 */
#ifndef LPRNET_KERNELS_H_
#define LPRNET_KERNELS_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace lprnet {

/* One vector register; blocks and pixels of outputs whose sums stay in registers. */
#if defined(__AVX512F__)
#define BLOCK_IS_16 1
constexpr int BLOCK = 16, PIXELS = 12;
#elif defined(__AVX__)
constexpr int BLOCK = 8, PIXELS = 6;
#else
constexpr int BLOCK = 4, PIXELS = 4;
#endif
constexpr int BLOCKS = 2;
/* Floats of a strip between layers, which is to stay in the cache. */
constexpr size_t STRIP = 32 * 1024;

typedef float Vector __attribute__((vector_size(BLOCK * sizeof(float))));
/* In memory: of any alignment, and of floats. */
typedef float Stored __attribute__((vector_size(BLOCK * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int32_t Lanes __attribute__((vector_size(BLOCK * sizeof(int32_t))));
typedef int32_t StoredLanes __attribute__((vector_size(BLOCK * sizeof(int32_t)), aligned(sizeof(int32_t)), may_alias));

/* An element in 8 bits, and what is added to signed ones: VNNI multiplies unsigned by signed bytes. Elsewhere there is
 * no exact product of bytes, and pairs of 16 bits are multiplied. Neighboring inputs that one instruction takes. */
#if (BLOCK_IS_16 && defined(__AVX512VNNI__)) || (!BLOCK_IS_16 && defined(__AVXVNNI__))
typedef uint8_t Small;
constexpr int ZERO = 128;
#else
typedef int16_t Small;
constexpr int ZERO = 0;
#endif
constexpr int GROUP = sizeof(int32_t) / sizeof(Small);
typedef Small Smalls __attribute__((vector_size(BLOCK * sizeof(Small)), aligned(sizeof(Small)), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Stored*>(from); }
inline Lanes load(const int32_t* from) { return *reinterpret_cast<const StoredLanes*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Stored*>(to) = value; }
inline int blocks_of(int channels) { return (channels + BLOCK - 1) / BLOCK; }

/* Elements in 8 bits as whole numbers. Other than by these instructions, GCC 12 takes one after the other. */
#if defined(__AVX512F__)
inline Lanes lanes(const uint8_t* from) { return (Lanes)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)); }
inline Lanes lanes(const int16_t* from) {
  return (Lanes)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)from));
}
#elif defined(__AVX2__)
inline Lanes lanes(const uint8_t* from) { return (Lanes)_mm256_cvtepu8_epi32(_mm_loadu_si64(from)); }
inline Lanes lanes(const int16_t* from) { return (Lanes)_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)from)); }
#else
inline Lanes lanes(const Small* from) {
  return __builtin_convertvector(*reinterpret_cast<const Smalls*>(from), Lanes);
}
#endif

/* The same as float32; `zero` was added to them. */
inline Vector load(const Small* from, int zero) {
  return __builtin_convertvector(ZERO ? lanes(from) - zero : lanes(from), Vector);
}
inline Vector load(const float* from, int) { return load(from); }

template <class Element>
struct ViewOf {
  Element* data;
  size_t pitch;
  Element* at(int block, int pixel) const { return data + block * pitch + (size_t)pixel * BLOCK; }
};
typedef ViewOf<float> View;

/* What an activation leaves of a value; NaN stays NaN. */
struct Range {
  Vector low, high;
  Range(float lowest, float highest) : low(Vector{} + lowest), high(Vector{} + highest) {}
  Vector operator()(Vector value) const {
    value = value < low ? low : value;
    return value > high ? high : value;
  }
  float operator()(float value) const { return value < low[0] ? low[0] : value > high[0] ? high[0] : value; }
  /* For 8 bits, which have no NaN: it becomes the lowest value. */
  Vector number(Vector value) const {
    value = value > low ? value : low;
    return value < high ? value : high;
  }
  float number(float value) const { return !(value > low[0]) ? low[0] : value < high[0] ? value : high[0]; }
};

/* A matrix as blocks of rows, each column by column, and what its sums begin with. In 8 bits a column is a group. */
template <class Number>
struct Matrix {
  const Number *weight, *bias;
  size_t panel;
};

/* Where the outputs go, and what is added before the activation (data may be null). */
struct Result {
  View to, addend;
  const Range& range;
  Result row(size_t pixels) const { return {{to.data + pixels * BLOCK, to.pitch}, addend, range}; }
};

/* A pointer of which, and of what it points to, nothing is known before. Otherwise GCC has addresses of all outputs in
 * registers while it sums, and with AVX-512, whose registers it then takes for them, the weights in memory. */
template <class Value>
inline Value* only_here(Value* pointer) {
  asm volatile("" : "+r"(pointer) : : "memory");
  return pointer;
}

/* Writes the outputs of blocks from `block` on, at one tile of pixels after the other. */
class Writer {
 public:
  Writer(const Result& result, int block, int pixel)
      : to(result.to.at(block, pixel)), addend(result.addend.data ? result.addend.at(block, pixel) : nullptr),
        to_pitch(result.to.pitch), addend_pitch(result.addend.pitch), range(result.range) {}

  template <int M, int N>
  __attribute__((always_inline)) void write(Vector (&sums)[M][N]) {
    if (addend) {
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) {
        const float* const from = only_here(addend + i * addend_pitch);
#pragma GCC unroll 32
        for (int j = 0; j < N; ++j) sums[i][j] += load(from + j * BLOCK);
      }
      addend += N * BLOCK;
    }
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) {
      float* const row = only_here(to + i * to_pitch);
#pragma GCC unroll 32
      for (int j = 0; j < N; ++j) store(row + j * BLOCK, range(sums[i][j]));
    }
    to += N * BLOCK;
  }

 private:
  float* to;
  const float* addend;
  const size_t to_pitch, addend_pitch;
  const Range range;
};

inline Writer writer(const Result& result, int block, int pixel) { return Writer(result, block, pixel); }

/* The compiler has to have a value as it is here: it can neither fuse nor reorder what it is made of. */
template <class Value>
inline void keep(Value* value) {
#if defined(__AVX512F__)
  asm("" : "+v"(*value));
#elif defined(__SSE2__)
  asm("" : "+x"(*value));
#else
  asm("" : "+m"(*value));
#endif
}

/* A value as it is in float32: the compiler cannot fuse its product with a sum. */
inline Vector rounded(Vector value) {
  keep(&value);
  return value;
}

inline Vector as_float(Vector value) { return value; }
inline Vector as_float(Lanes value) { return __builtin_convertvector(value, Vector); }

/* To the nearest whole number, of two the even one; of at most 2^22. Where there are instructions that narrow
 * registers, NaN and what does not fit become the lowest of 32 bits. pack() then narrows two registers to one of 16
 * bits, and pack_bytes() two of these to one of 0 to 255: each number to the nearest that fits, and lanes of 128 bits
 * apart. */
#if defined(__AVX512BW__)
#define PACKS 1
inline Lanes nearest(Vector value) { return (Lanes)_mm512_cvtps_epi32((__m512)value); }
inline Lanes pack(Lanes x, Lanes y) { return (Lanes)_mm512_packs_epi32((__m512i)x, (__m512i)y); }
inline Lanes pack_bytes(Lanes x, Lanes y) { return (Lanes)_mm512_packus_epi16((__m512i)x, (__m512i)y); }
#elif defined(__AVX2__) && !defined(__AVX512F__)
#define PACKS 1
inline Lanes nearest(Vector value) { return (Lanes)_mm256_cvtps_epi32((__m256)value); }
inline Lanes pack(Lanes x, Lanes y) { return (Lanes)_mm256_packs_epi32((__m256i)x, (__m256i)y); }
inline Lanes pack_bytes(Lanes x, Lanes y) { return (Lanes)_mm256_packus_epi16((__m256i)x, (__m256i)y); }
#elif defined(__SSE2__) && !defined(__AVX__)
#define PACKS 1
inline Lanes nearest(Vector value) { return (Lanes)_mm_cvtps_epi32((__m128)value); }
inline Lanes pack(Lanes x, Lanes y) { return (Lanes)_mm_packs_epi32((__m128i)x, (__m128i)y); }
inline Lanes pack_bytes(Lanes x, Lanes y) { return (Lanes)_mm_packus_epi16((__m128i)x, (__m128i)y); }
#else
inline Lanes nearest(Vector value) {
  constexpr float SHIFT = 3 << 22;
  return (Lanes)(value + SHIFT) - (Lanes)(Vector{} + SHIFT);
}
#endif

/* From a sum to the output of a layer, in steps of the output: sum * multiplier + offset + addend * addend_multiplier,
 * each product and sum in float32, from `low` to `high`, and for outputs in 8 bits the nearest whole number, of two
 * the even one. */
template <class Element>
struct Rounding {
  ViewOf<Element> to;
  ViewOf<const Small> addend;
  /* By channel. */
  const float *multiplier, *offset;
  float addend_multiplier;
  /* What was added to the elements of the addend, and is to those of the output. */
  int addend_zero, zero;
  Range range;
  Rounding row(size_t pixels) const {
    Rounding found = *this;
    found.to.data += pixels * BLOCK;
    return found;
  }
};

/* N neighboring outputs. */
template <int N>
inline void finish(float* to, const Vector (&values)[N], const Range& range, int) {
#pragma GCC unroll 32
  for (int j = 0; j < N; ++j) store(to + j * BLOCK, range(values[j]));
}

#if PACKS
/* As many outputs as fill a register. */
inline void finish_group(Small* to, const Vector* values, const Range& range, int zero) {
  typedef int16_t Shorts __attribute__((vector_size(sizeof(Lanes))));
  Shorts halves[GROUP / 2];
#pragma GCC unroll 2
  for (int i = 0; i < GROUP / 2; ++i) {
    Lanes whole[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const Vector value = values[2 * i + j];
      /* So that NaN stays. */
      whole[j] = nearest(range.high < value ? range.high : value);
    }
    const Shorts low = Shorts{} + (int16_t)range.low[0];
    halves[i] = (Shorts)pack(whole[0], whole[1]);
    halves[i] = (halves[i] > low ? halves[i] : low) + (int16_t)zero;
  }
  Lanes all = GROUP == 2 ? (Lanes)halves[0] : pack_bytes((Lanes)halves[0], (Lanes)halves[GROUP / 2 - 1]);
  /* Each of the values has a part of `sizeof(Small)` in each lane of 128 bits. */
  constexpr int LANES = BLOCK / 4, SIZE = sizeof(Small);
  Lanes order;
#pragma GCC unroll 16
  for (int i = 0; i < BLOCK; ++i) order[i] = i % (LANES * SIZE) / SIZE * 4 + i / (LANES * SIZE) * SIZE + i % SIZE;
  *reinterpret_cast<StoredLanes*>(to) = __builtin_shuffle(all, order);
}
#endif

template <int N>
inline void finish(Small* to, const Vector (&values)[N], const Range& range, int zero) {
#if PACKS
  if constexpr (N >= GROUP) {
#pragma GCC unroll 16
    for (int j = 0; j + GROUP <= N; j += GROUP) finish_group(to + j * BLOCK, values + j, range, zero);
    if (N % GROUP) finish_group(to + (N - GROUP) * BLOCK, values + N - GROUP, range, zero);
    return;
  }
#endif
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) {
    const Lanes whole = nearest(range.number(values[j])) + zero;
    *reinterpret_cast<Smalls*>(to + j * BLOCK) = __builtin_convertvector(whole, Smalls);
  }
}

/* One output. */
template <class Element>
inline void finish(Element* to, Vector value, const Range& range, int zero) {
  const Vector values[1] = {value};
  finish(to, values, range, zero);
}

template <class Element>
class RoundingWriter {
 public:
  RoundingWriter(const Rounding<Element>& result, int block, int pixel)
      : to(result.to.at(block, pixel)), addend(result.addend.data ? result.addend.at(block, pixel) : nullptr),
        to_pitch(result.to.pitch), addend_pitch(result.addend.pitch), multiplier(result.multiplier + block * BLOCK),
        offset(result.offset + block * BLOCK), factor(result.addend_multiplier),
        addend_zero(result.addend_zero), zero(result.zero), range(result.range) {}

  template <class Sum, int M, int N>
  __attribute__((always_inline)) void write(Sum (&sums)[M][N]) {
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) {
      const Vector scale = load(only_here(multiplier + i * BLOCK)), shift = load(only_here(offset + i * BLOCK));
      Vector values[N];
#pragma GCC unroll 32
      for (int j = 0; j < N; ++j) values[j] = rounded(as_float(sums[i][j]) * scale) + shift;
      if (addend) {
        const Small* const from = only_here(addend + i * addend_pitch);
#pragma GCC unroll 32
        for (int j = 0; j < N; ++j) values[j] += rounded(load(from + j * BLOCK, addend_zero) * factor);
      }
      finish(only_here(to + i * to_pitch), values, range, zero);
    }
    skip(N);
  }

  void skip(int pixels) {
    to += pixels * BLOCK;
    if (addend) addend += pixels * BLOCK;
  }

 private:
  Element* to;
  const Small* addend;
  const size_t to_pitch, addend_pitch;
  const float *multiplier, *offset;
  const float factor;
  const int addend_zero, zero;
  const Range range;
};

template <class Element>
inline RoundingWriter<Element> writer(const Rounding<Element>& result, int block, int pixel) {
  return RoundingWriter<Element>(result, block, pixel);
}

inline void accumulate(Vector* sums, float value, Vector row) { *sums += value * row; }

/* The products of a group of inputs, by lane, with as many weights for each output. */
inline void accumulate(Lanes* sums, Lanes values, Lanes row) {
#if defined(__AVX512VNNI__)
  *sums = (Lanes)_mm512_dpbusd_epi32((__m512i)*sums, (__m512i)values, (__m512i)row);
#elif defined(__AVXVNNI__)
  *sums = (Lanes)_mm256_dpbusd_avx_epi32((__m256i)*sums, (__m256i)values, (__m256i)row);
#elif defined(__AVX512BW__)
  *sums += (Lanes)_mm512_madd_epi16((__m512i)values, (__m512i)row);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  *sums += (Lanes)_mm256_madd_epi16((__m256i)values, (__m256i)row);
#elif defined(__SSE2__) && !defined(__AVX__)
  *sums += (Lanes)_mm_madd_epi16((__m128i)values, (__m128i)row);
#else
  *sums += (values << 16 >> 16) * (row << 16 >> 16) + (values >> 16) * (row >> 16);
#endif
  /* Otherwise it sums products of several groups first, for which there are no registers. */
  keep(sums);
}

inline void accumulate(Lanes* sums, int32_t value, Lanes row) { accumulate(sums, Lanes{} + value, row); }

/* By what a kernel multiplies, floats or groups in 8 bits: its sums, and how many elements are one. */
template <class Number> struct SumOf;
template <> struct SumOf<float> { typedef Vector type; };
template <> struct SumOf<int32_t> { typedef Lanes type; };
template <class Number>
constexpr int group_of() { return std::is_same<Number, float>::value ? 1 : GROUP; }

/* `number` tiles, one after the other, of M blocks of outputs at N pixels, from `count` groups of INNER neighboring
 * inputs: the groups are `pitch` apart, the pixels STEP. */
template <int M, int N, int INNER, int STEP, class Number, class To>
void tiles(const Number* x, int count, size_t pitch, const Matrix<Number>& matrix, int block, int pixel, int number,
           const To& result) {
  typedef typename SumOf<Number>::type Sum;
  const Number* const panel = matrix.weight + block * matrix.panel;
  const Number* const bias = matrix.bias + block * BLOCK;
  const size_t next = matrix.panel;
  auto out = writer(result, block, pixel);
  x += (size_t)pixel * STEP;
  for (int index = 0; index < number; ++index, x += N * STEP) {
    Sum sums[M][N];
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 32
      for (int j = 0; j < N; ++j) sums[i][j] = load(bias + i * BLOCK);
    const Number* weight = panel;
    const Number* from = x;
    for (int group = 0; group < count; ++group, from += pitch) {
#pragma GCC unroll 4
      for (int k = 0; k < INNER; ++k, weight += BLOCK) {
        Sum row[M];
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
          row[i] = load(weight + i * next);
          /* Loaded once: as operands in memory they would be loaded for every pixel. */
          keep(&row[i]);
        }
        /* Where pixels share inputs: do not keep those for the next k, in registers that the sums need. */
        if (STEP < INNER) asm volatile("" : "+r"(from));
#pragma GCC unroll 32
        for (int j = 0; j < N; ++j) {
          /* Of a group too, whatever its elements are. */
          Number value;
          std::memcpy(&value, from + j * STEP + k, sizeof(value));
#pragma GCC unroll 4
          for (int i = 0; i < M; ++i) accumulate(&sums[i][j], value, row[i]);
        }
      }
    }
    out.write(sums);
  }
}

/* Tiles of `size` pixels, from 1 to N. */
template <int M, int N, int INNER, int STEP, class Number, class To>
inline void tiles_of(int size, const Number* x, int count, size_t pitch, const Matrix<Number>& matrix, int block,
                     int pixel, int number, const To& result) {
  if constexpr (N > 0) {
    if (size == N) tiles<M, N, INNER, STEP>(x, count, pitch, matrix, block, pixel, number, result);
    else tiles_of<M, N - 1, INNER, STEP>(size, x, count, pitch, matrix, block, pixel, number, result);
  }
}

/* All pixels, in tiles as even as possible: a tile of few pixels waits for its own sums. */
template <int M, int N, int INNER, int STEP, class Number, class To>
void all_tiles(const Number* x, int pixels, int count, size_t pitch, const Matrix<Number>& matrix, int block,
               const To& result) {
  const int number = (pixels + N - 1) / N, size = pixels / number, larger = pixels % number;
  tiles_of<M, N, INNER, STEP>(size + 1, x, count, pitch, matrix, block, 0, larger, result);
  tiles_of<M, N, INNER, STEP>(size, x, count, pitch, matrix, block, larger * (size + 1), number - larger, result);
}

/* `outputs` blocks of outputs at `pixels` pixels. */
template <int INNER, int STEP, class Number, class To>
void multiply(const Number* x, int pixels, int count, size_t pitch, const Matrix<Number>& matrix, int outputs,
              const To& result) {
  int block = 0;
  for (; block + BLOCKS <= outputs; block += BLOCKS)
    all_tiles<BLOCKS, PIXELS, INNER, STEP>(x, pixels, count, pitch, matrix, block, result);
  for (; block < outputs; ++block)
    all_tiles<1, BLOCKS * PIXELS, INNER, STEP>(x, pixels, count, pitch, matrix, block, result);
}

inline void pointwise(const View& x, int inputs, int pixels, const Matrix<float>& matrix, int outputs,
                      const Result& result) {
  multiply<BLOCK, BLOCK>(x.data, pixels, inputs, x.pitch, matrix, outputs, result);
}

template <class To>
void pointwise(const ViewOf<Small>& x, int inputs, int pixels, const Matrix<int32_t>& matrix, int outputs,
               const To& result) {
  multiply<BLOCK / GROUP, BLOCK / GROUP>(reinterpret_cast<const int32_t*>(x.data), pixels, inputs, x.pitch / GROUP,
                                         matrix, outputs, result);
}

/* One row of a 3x3 convolution with stride 1 or 2 from rows of groups of channels that have a group of zeros at either
 * end, `pitch` groups each; the columns of the matrix are (row, group, column) of the kernel. */
template <class Number, class To>
void dense_row(const Number* rows, size_t pitch, int groups, int stride, int width, const Matrix<Number>& matrix,
               int outputs, const To& result) {
  if (stride == 1) multiply<3, 1>(rows, width, 3 * groups, pitch, matrix, outputs, result);
  else multiply<3, 2>(rows, width, 3 * groups, pitch, matrix, outputs, result);
}

/* The 3x3 depthwise convolution of COLUMNS neighboring pixels, of the kernel's rows and columns from Y0 to Y1 and X0 to
 * X1: those within the image. `from` is where the kernel's first row and column would be. */
template <int STRIDE, int COLUMNS, int Y0, int Y1, int X0, int X1>
inline void taps(const float* from, size_t pitch, const Vector* w, Writer* out) {
  Vector sums[1][COLUMNS];
#pragma GCC unroll 4
  for (int j = 0; j < COLUMNS; ++j) sums[0][j] = w[9];
#pragma GCC unroll 3
  for (int y = Y0; y < Y1; ++y)
#pragma GCC unroll 16
    for (int x = X0; x < (COLUMNS - 1) * STRIDE + X1; ++x) {
      Vector value = load(from + y * pitch + x * BLOCK);
      /* Loaded once, too. */
      keep(&value);
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; ++j)
        if (x - j * STRIDE >= X0 && x - j * STRIDE < X1) sums[0][j] += w[3 * y + x - j * STRIDE] * value;
    }
  out->write(sums);
}

template <int STRIDE, int Y0, int Y1>
void depthwise_row(const float* from, size_t pitch, int before, int width, int out_width, const float* weight,
                   Writer out) {
  constexpr int COLUMNS = STRIDE == 1 ? 4 : 2;
  /* Copies, which the outputs cannot overwrite, stay in registers. */
  Vector w[10];
#pragma GCC unroll 10
  for (int k = 0; k < 10; ++k) w[k] = load(weight + k * BLOCK);
  auto at = [&](int column) { return from + (ptrdiff_t)(column * STRIDE - before) * BLOCK; };
  /* The kernel is within the image for the columns from `first` to `end`. */
  const int room = width + before - 3;
  const int first = before, end = std::max(first, room < 0 ? 0 : std::min(out_width, room / STRIDE + 1));
  int column = 0;
  if (before) {
    if (width == 1) taps<STRIDE, 1, Y0, Y1, 1, 2>(at(0), pitch, w, &out);
    else taps<STRIDE, 1, Y0, Y1, 1, 3>(at(0), pitch, w, &out);
    ++column;
  }
  for (; column + COLUMNS <= end; column += COLUMNS)
    taps<STRIDE, COLUMNS, Y0, Y1, 0, 3>(at(column), pitch, w, &out);
  for (; column < end; ++column) taps<STRIDE, 1, Y0, Y1, 0, 3>(at(column), pitch, w, &out);
  for (; column < out_width; ++column) taps<STRIDE, 1, Y0, Y1, 0, 2>(at(column), pitch, w, &out);
}

/* Rows [first, end) of the depthwise 3x3 convolution of one block; weights tap by tap, then what sums begin with. The
 * image has `before` rows and columns of zeros, 0 or 1, before it, and up to one behind it. `result` begins at row
 * `first`. */
template <int STRIDE>
void depthwise(const float* x, int height, int width, int before, const float* weight, int first, int end,
               int out_width, int block, const Result& result) {
  const size_t pitch = (size_t)width * BLOCK;
  for (int row = first; row < end; ++row) {
    const int y = row * STRIDE - before;
    const auto row_of = y < 0 ? height == 1 ? depthwise_row<STRIDE, 1, 2> : depthwise_row<STRIDE, 1, 3>
        : y + 3 <= height ? depthwise_row<STRIDE, 0, 3> : depthwise_row<STRIDE, 0, 2>;
    row_of(x + (ptrdiff_t)y * width * BLOCK, pitch, before, width, out_width, weight,
           writer(result, block, (row - first) * out_width));
  }
}

/* In 8 bits an instruction takes GROUP inputs of an output: those of a column, from a group of rows of the image with
 * its zeros. Groups begin at even rows. GROUPS of them hold four rows, and so the kernels that begin at the first row
 * and at the second; weights are 0 for the rows that are not the kernel's. */
constexpr int GROUPS = 4 / GROUP;
/* The weights of a block: by first row, group and column, then what sums begin with. */
constexpr int DEPTHWISE_WEIGHTS = GROUPS * 3 * BLOCK, DEPTHWISE_PANEL = 2 * DEPTHWISE_WEIGHTS + BLOCK;

/* The place of a weight in its panel, where the kernel begins at row `first` of four. */
inline int32_t* depthwise_weight(int32_t* panel, int first, int row, int column) {
  return panel + first * DEPTHWISE_WEIGHTS + ((first + row) / GROUP * 3 + column) * BLOCK;
}

/* Numbers that a depthwise convolution in 8 bits needs for its rows: groups, and a row of zeros. */
inline size_t grouped_rows(int width) { return (size_t)(GROUPS + 1) * (width + 2) * BLOCK; }

/* A pixel and channel after the other, one element of each row of a group. */
inline void group_rows(const Small* const (&rows)[GROUP], int count, Small* __restrict to) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  /* GCC 12 writes whole registers, for which it has to exchange their halves. */
  if constexpr (GROUP == 2) {
    for (int i = 0; i < count; i += BLOCK) {
      const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[0] + i));
      const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[1] + i));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * i), _mm_unpacklo_epi16(first, second));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * i) + 1, _mm_unpackhi_epi16(first, second));
    }
    return;
  }
#endif
  const Small *const first = rows[0], *const second = rows[1];
  const Small *const third = rows[GROUP - 2], *const last = rows[GROUP - 1];
  for (int i = 0; i < count; ++i) {
    to[GROUP * i] = first[i];
    to[GROUP * i + 1] = second[i];
    if (GROUP == 4) {
      to[GROUP * i + 2] = third[i];
      to[GROUP * i + 3] = last[i];
    }
  }
}

/* COLUMNS neighboring pixels of ROWS rows. */
template <int STRIDE, int COLUMNS, int ROWS, class To>
inline void grouped_taps(const int32_t* const (&from)[GROUPS], int column, const Lanes (&w)[ROWS][GROUPS][3],
                         Lanes bias, To (&out)[ROWS]) {
  Lanes sums[ROWS][1][COLUMNS];
#pragma GCC unroll 2
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j) sums[row][0][j] = ZERO ? bias : Lanes{};
#pragma GCC unroll 2
  for (int group = 0; group < GROUPS; ++group)
#pragma GCC unroll 16
    for (int x = 0; x < (COLUMNS - 1) * STRIDE + 3; ++x) {
      const Lanes value = load(from[group] + (size_t)(column * STRIDE + x) * BLOCK);
#pragma GCC unroll 2
      for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; ++j)
          if (x >= j * STRIDE && x < j * STRIDE + 3)
            accumulate(&sums[row][0][j], value, w[row][group][x - j * STRIDE]);
    }
#pragma GCC unroll 2
  for (int row = 0; row < ROWS; ++row) out[row].write(sums[row]);
}

/* ROWS rows, of which the first one's kernel begins where the weights say. */
template <int STRIDE, int ROWS, class To>
void grouped_row(const int32_t* const (&from)[GROUPS], int out_width, const int32_t* weight, Lanes bias,
                 To (&out)[ROWS]) {
  constexpr int COLUMNS = 4;
  Lanes w[ROWS][GROUPS][3];
#pragma GCC unroll 2
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 2
    for (int group = 0; group < GROUPS; ++group)
#pragma GCC unroll 3
      for (int x = 0; x < 3; ++x) w[row][group][x] = load(weight + row * DEPTHWISE_WEIGHTS + (group * 3 + x) * BLOCK);
  int column = 0;
  for (; column + COLUMNS <= out_width; column += COLUMNS)
    grouped_taps<STRIDE, COLUMNS>(from, column, w, bias, out);
  if (out_width >= COLUMNS && column < out_width) {
    /* Some of them again. */
    for (To& each : out) each.skip(out_width - COLUMNS - column);
    grouped_taps<STRIDE, COLUMNS>(from, out_width - COLUMNS, w, bias, out);
    return;
  }
  for (; column < out_width; ++column) grouped_taps<STRIDE, 1>(from, column, w, bias, out);
}

/* The same in 8 bits. `zero` was added to the elements of the image; `rows` is memory for grouped_rows(width). */
template <int STRIDE, class To>
void depthwise(const Small* x, int zero, int height, int width, int before, const int32_t* weight, int first, int end,
               int out_width, int block, int32_t* rows, const To& result) {
  const size_t pitch = (size_t)(width + 2) * BLOCK;
  Small* const zeros = reinterpret_cast<Small*>(rows + GROUPS * pitch);
  std::fill(zeros, zeros + width * BLOCK, (Small)zero);
  const Lanes bias = load(weight + 2 * DEPTHWISE_WEIGHTS);
  const auto out = [&](int row) { return writer(result, block, (row - first) * out_width); };
  int next = 0;
  for (int row = first; row < end;) {
    const int group = row * STRIDE / 2, from_row = row * STRIDE % 2;
    for (next = std::max(next, group); next < group + GROUPS; ++next) {
      const Small* in_group[GROUP];
      for (int i = 0; i < GROUP; ++i) {
        const int y = 2 * next + i - before;
        in_group[i] = y < 0 || y >= height ? zeros : x + (size_t)y * width * BLOCK;
      }
      Small* const to = reinterpret_cast<Small*>(rows + next % GROUPS * pitch);
      std::fill(to, to + GROUP * BLOCK, (Small)zero);
      group_rows(in_group, width * BLOCK, to + GROUP * BLOCK);
      std::fill(to + (size_t)(width + 1) * GROUP * BLOCK, to + (size_t)(width + 2) * GROUP * BLOCK, (Small)zero);
    }
    const int32_t* from[GROUPS];
    for (int i = 0; i < GROUPS; ++i) from[i] = rows + (group + i) % GROUPS * pitch + (1 - before) * BLOCK;
    /* Two rows where registers hold the weights of both. */
    if (STRIDE == 1 && GROUPS == 1 && from_row == 0 && row + 1 < end) {
      decltype(out(row)) both[] = {out(row), out(row + 1)};
      grouped_row<STRIDE>(from, out_width, weight, bias, both);
      row += 2;
    } else {
      decltype(out(row)) one[] = {out(row)};
      grouped_row<STRIDE>(from, out_width, weight + from_row * DEPTHWISE_WEIGHTS, bias, one);
      ++row;
    }
  }
}

/* The sum of all lanes, by halves of them. */
template <int HALF = BLOCK / 2>
inline float total(Vector value) {
  if constexpr (HALF == 0) {
    return value[0];
  } else {
    Lanes other;
#pragma GCC unroll 16
    for (int lane = 0; lane < BLOCK; ++lane) other[lane] = lane ^ HALF;
    return total<HALF / 2>(value + __builtin_shuffle(value, other));
  }
}

/* x / sqrt(||x||^2 + eps) at each pixel; in place if `to` is x. */
inline void normalize(const View& x, int blocks, int pixels, float eps, const View& to) {
  for (int pixel = 0; pixel < pixels; ++pixel) {
    Vector squares = {};
    for (int i = 0; i < blocks; ++i) {
      const Vector value = load(x.at(i, pixel));
      squares += value * value;
    }
    const float inverse = 1 / std::sqrt(total(squares) + eps);
    for (int i = 0; i < blocks; ++i) store(to.at(i, pixel), load(x.at(i, pixel)) * inverse);
  }
}

/* The same in steps, of which there are `steps` in 1, to 8 bits. On every processor the squares are summed in the same
 * order: each channel in its lane of 16, and halves of the lanes. */
inline void normalize(const View& x, int blocks, int pixels, float eps, float steps, const ViewOf<Small>& to, int zero,
                      const Range& range) {
  constexpr int PARTS = 16 / BLOCK;
  for (int pixel = 0; pixel < pixels; ++pixel) {
    Vector squares[PARTS] = {};
    for (int i = 0; i < blocks; i += PARTS)
#pragma GCC unroll 4
      for (int part = 0; part < PARTS; ++part)
        if (i + part < blocks) {
          const Vector value = load(x.at(i + part, pixel));
          squares[part] += rounded(value * value);
        }
#pragma GCC unroll 2
    for (int half = PARTS / 2; half > 0; half /= 2)
#pragma GCC unroll 2
      for (int part = 0; part < half; ++part) squares[part] += squares[part + half];
    const Vector factor = Vector{} + steps / std::sqrt(total(squares[0]) + eps);
    for (int i = 0; i < blocks; ++i) finish(to.at(i, pixel), load(x.at(i, pixel)) * factor, range, zero);
  }
}

/* From float32 to 8 bits, with `steps` in 1. */
inline void quantize(const View& x, int blocks, int pixels, float steps, const ViewOf<Small>& to, int zero,
                     const Range& range) {
  for (int i = 0; i < blocks; ++i)
    for (int pixel = 0; pixel < pixels; ++pixel) finish(to.at(i, pixel), load(x.at(i, pixel)) * steps, range, zero);
}

/* From 8 bits to float32. */
inline void dequantize(const ViewOf<Small>& x, int zero, int blocks, int pixels, float step, const View& to) {
  for (int i = 0; i < blocks; ++i)
    for (int pixel = 0; pixel < pixels; ++pixel) store(to.at(i, pixel), load(x.at(i, pixel), zero) * step);
}

/* Groups of `number` channels in steps, of which there are `steps` in 1, at `count` pixels that follow one another. */
inline void quantize_groups(const float* const (&channels)[GROUP], int number, int count, float steps,
                            const Range& range, int zero, int32_t* to) {
  constexpr int BITS = 8 * sizeof(Small);
  for (int k = 0; k < count; k += BLOCK) {
    const int size = std::min(BLOCK, count - k);
    Lanes groups = {};
#pragma GCC unroll 4
    for (int i = 0; i < GROUP; ++i) {
      if (i == number) break;
      Vector values = {};
      if (size == BLOCK) values = load(channels[i] + k);
      else std::memcpy(&values, channels[i] + k, size * sizeof(float));
      groups |= ((nearest(range.number(values * steps)) + zero) & ((1 << BITS) - 1)) << BITS * i;
    }
    if (size == BLOCK) *reinterpret_cast<StoredLanes*>(to + k) = groups;
    else std::memcpy(to + k, &groups, size * sizeof(int32_t));
  }
}

inline void add(const View& x, const View& y, int blocks, int pixels, const Result& result) {
  for (int i = 0; i < blocks; ++i)
    for (int pixel = 0; pixel < pixels; ++pixel) {
      Vector sum = load(x.at(i, pixel));
      if (y.data) sum += load(y.at(i, pixel));
      store(result.to.at(i, pixel), result.range(sum));
    }
}

/* Channel 2 i is channel i of x, channel 2 i + 1 is channel i of y. */
inline void interleave(const View& x, const View& y, int outputs, int pixels, const View& to) {
  Lanes halves[2];
  for (int lane = 0; lane < BLOCK; ++lane)
    for (int half = 0; half < 2; ++half) halves[half][lane] = lane / 2 + lane % 2 * BLOCK + half * BLOCK / 2;
  for (int i = 0; i < outputs; ++i)
    for (int pixel = 0; pixel < pixels; ++pixel)
      store(to.at(i, pixel), __builtin_shuffle(load(x.at(i / 2, pixel)), load(y.at(i / 2, pixel)), halves[i % 2]));
}

/* Rows [first, end) of the largest of 3x3 with a stride of 2 and a padding of 1, of one block. */
inline void largest(const float* x, int height, int width, int first, int end, int out_width, float* to) {
  for (int row = first; row < end; ++row)
    for (int column = 0; column < out_width; ++column, to += BLOCK) {
      Vector best = Vector{} - INFINITY;
      for (int y = std::max(0, 2 * row - 1); y < std::min(height, 2 * row + 2); ++y)
        for (int z = std::max(0, 2 * column - 1); z < std::min(width, 2 * column + 2); ++z) {
          const Vector value = load(x + ((size_t)y * width + z) * BLOCK);
          best = value <= best ? best : value;
        }
      store(to, best);
    }
}

/* The mean over the pixels of one block. */
inline Vector mean(const float* x, int pixels) {
  Vector sums[4] = {};
  for (int pixel = 0; pixel < pixels; ++pixel) sums[pixel % 4] += load(x + (size_t)pixel * BLOCK);
  return (sums[0] + sums[1] + (sums[2] + sums[3])) / (float)pixels;
}

/* ROWS dot products of neighboring rows of a matrix with x. */
template <int ROWS>
inline void dots(const float* x, int size, const float* weight, const float* bias, const Range& range, float* to) {
  Vector sums[ROWS] = {};
  int k = 0;
  for (; k + BLOCK <= size; k += BLOCK) {
    const Vector value = load(x + k);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) sums[i] += value * load(weight + (size_t)i * size + k);
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    float sum = total(sums[i]);
    for (int rest = k; rest < size; ++rest) sum += x[rest] * weight[(size_t)i * size + rest];
    to[i] = range(sum + (bias ? bias[i] : 0));
  }
}

/* ROWS dot products of neighboring rows of a matrix in 8 bits with x, in 8 bits too; exact. */
template <int ROWS>
inline void dots(const Small* x, int zero, int size, const int8_t* weight, int32_t* to) {
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    const int8_t* const row = weight + (size_t)i * size;
    int32_t sum = 0, weights = 0;
    for (int k = 0; k < size; ++k) sum += x[k] * row[k];
    if (ZERO && zero)
      for (int k = 0; k < size; ++k) weights += row[k];
    to[i] = sum - zero * weights;
  }
}

/* From (channels, pixels): the pixels [first, end) of one block, whose first channel is the first of `from`. */
inline void to_blocks(const float* from, int channels, size_t pixels, size_t first, size_t end, float* to) {
  for (size_t pixel = first; pixel < end; ++pixel)
    for (int lane = 0; lane < BLOCK; ++lane)
      to[pixel * BLOCK + lane] = lane < channels ? from[lane * pixels + pixel] : 0;
}

/* To (channels, pixels): all pixels of one block. */
inline void from_blocks(const float* from, int channels, size_t pixels, float* to) {
  for (int lane = 0; lane < std::min(channels, BLOCK); ++lane)
    for (size_t pixel = 0; pixel < pixels; ++pixel) to[lane * pixels + pixel] = from[pixel * BLOCK + lane];
}

}  // namespace lprnet

#endif  // LPRNET_KERNELS_H_
