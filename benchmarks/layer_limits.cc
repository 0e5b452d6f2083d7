/* Times of the operator library's kernels, layer by layer in float32, beside what the machine can do (see
 * layer_limits.py).
 *
 * Reads a layer a line, "KIND INPUTS OUTPUTS HEIGHT WIDTH STRIDE", with the size of the input. Prints multiply-adds and
 * copied bytes a second, then the nanoseconds of each layer, the fastest of the rounds. Layers work on strips of
 * rows as in the library: between those of a module nothing leaves the cache.
 */
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "kernels.h"

using namespace lprnet;

struct Layer {
  std::string kind;
  int inputs, outputs, height, width, stride;
};

/* Processor time, in which other processes hardly count. */
double nanoseconds(const std::function<void()>& run) {
  timespec start, end;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
  run();
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
  return 1e9 * (end.tv_sec - start.tv_sec) + (end.tv_nsec - start.tv_nsec);
}

/* Sums in registers alone, as many as a tile has. */
void multiply_adds(int repeats) {
  Vector sums[BLOCKS * PIXELS] = {}, x = {}, y = {};
  keep(&y);
  for (int i = 0; i < repeats; ++i)
#pragma GCC unroll 32
    for (int j = 0; j < BLOCKS * PIXELS; ++j) {
      /* Else one product is computed for all. */
      keep(&x);
      sums[j] += x * y;
      keep(&sums[j]);
    }
#pragma GCC unroll 32
  for (int j = 1; j < BLOCKS * PIXELS; ++j) sums[0] += sums[j];
  volatile float result = total(sums[0]);
  (void)result;
}

void copy(const std::vector<float>& from, std::vector<float>* to) {
  for (size_t i = 0; i < from.size(); i += BLOCK) store(to->data() + i, load(from.data() + i));
}

/* Feature maps of zeros, which the layers share as the network's do. */
struct Maps {
  std::vector<float> from, to, addend, strip;
};

/* One layer, as the library runs it. */
struct Run {
  const Layer layer;
  const int out_height, out_width;
  Maps& maps;
  std::vector<float> weight;
  const Range range{0, INFINITY};

  Run(const Layer& layer, Maps* shared)
      : layer(layer), out_height((layer.height - 1) / layer.stride + 1),
        out_width((layer.width - 1) / layer.stride + 1),
        maps(*shared), weight((size_t)blocks_of(layer.outputs) * BLOCK * (blocks_of(layer.inputs) * BLOCK * 9 + 10)) {
    const auto grow = [](std::vector<float>* map, size_t size) { map->resize(std::max(map->size(), size)); };
    grow(&maps.from, map(layer.inputs, layer.height * layer.width));
    grow(&maps.to, map(layer.outputs, out_height * out_width));
    grow(&maps.addend, maps.to.size());
    grow(&maps.strip, STRIP + map(std::max(layer.inputs, layer.outputs), 2 * (layer.width + 2)));
  }

  static size_t map(int channels, int pixels) { return (size_t)blocks_of(channels) * BLOCK * pixels; }

  void operator()() {
    if (layer.kind == "average") {
      for (int i = 0; i < blocks_of(layer.inputs); ++i)
        store(maps.to.data() + i * BLOCK, mean(maps.from.data() + map(BLOCK, layer.height * layer.width) * i,
                                          layer.height * layer.width));
    } else if (layer.kind == "dense") {
      for (int row = 0; row + 4 <= layer.outputs; row += 4)
        dots<4>(maps.from.data(), layer.inputs, weight.data() + (size_t)row * layer.inputs, nullptr, range,
                maps.to.data() + row);
    } else {
      const size_t row = layer.kind == "first" ? 2 * layer.inputs * (layer.width + 2)
          : map(layer.kind == "P2" ? layer.outputs : layer.inputs, out_width);
      const int rows = std::max(1, std::min<int>(out_height, STRIP / row)), pieces = (out_height + rows - 1) / rows;
      for (int i = 0; i < pieces; ++i) piece(out_height * i / pieces, out_height * (i + 1) / pieces);
    }
  }

  void piece(int first, int end) {
    const int pixels = (end - first) * out_width, blocks = blocks_of(layer.outputs);
    const size_t pitch = (size_t)pixels * BLOCK, map_pitch = (size_t)out_height * out_width * BLOCK;
    const View in = {maps.strip.data(), pitch}, none = {nullptr, 0};
    /* The output of the module, and its part of what is added to it. */
    const View out = {maps.to.data() + (size_t)first * out_width * BLOCK, map_pitch};
    const View sum = {maps.addend.data() + (size_t)first * out_width * BLOCK, map_pitch};
    const Matrix<float> matrix = {weight.data(), weight.data(), (size_t)blocks_of(layer.inputs) * BLOCK * BLOCK};
    if (layer.kind == "first") {
      convolve(first, end, {out, none, range});
    } else if (layer.kind == "depthwise") {
      for (int i = 0; i < blocks; ++i)
        (layer.stride == 1 ? depthwise<1> : depthwise<2>)(
            maps.from.data() + map(BLOCK, layer.height * layer.width) * i, layer.height, layer.width, 1, weight.data(),
            first, end, out_width, i, {{maps.strip.data(), pitch}, none, range});
    } else if (layer.kind == "normalization") {
      normalize(in, blocks, pixels, 1e-10f, in);
    } else if (layer.kind == "P1") {
      pointwise(in, blocks_of(layer.inputs), pixels, matrix, blocks, {{maps.to.data(), pitch}, none, range});
    } else {
      pointwise(in, blocks_of(layer.inputs), pixels, matrix, blocks,
                {out, layer.kind == "P2" ? sum : none, range});
    }
  }

  /* The first convolution, with the rows of its image. */
  void convolve(int first, int end, const Result& result) {
    const size_t pitch = layer.width + 2, rows = (end - first - 1) * layer.stride + 3;
    for (size_t i = 0; i < rows * layer.inputs; ++i)
      std::memcpy(maps.strip.data() + i * pitch + 1,
                  maps.from.data() + i * layer.width % (maps.from.size() - layer.width), layer.width * sizeof(float));
    const Matrix<float> matrix = {weight.data(), weight.data(), (size_t)9 * layer.inputs * BLOCK};
    for (int row = 0; row < end - first; ++row)
      dense_row(maps.strip.data() + (size_t)row * layer.stride * layer.inputs * pitch, pitch, layer.inputs,
                layer.stride, out_width, matrix, blocks_of(layer.outputs), result.row((size_t)row * out_width));
  }
};

int main(int, char** arguments) {
  Maps maps;
  std::vector<Run> runs;
  char kind[32];
  Layer layer;
  while (std::scanf("%31s %d %d %d %d %d", kind, &layer.inputs, &layer.outputs, &layer.height, &layer.width,
                    &layer.stride) == 6) {
    layer.kind = kind;
    runs.emplace_back(layer, &maps);
  }
  constexpr int REPEATS = 20000;
  /* Of the size of a feature map. */
  const std::vector<float> source(400 * 1024, 1);
  std::vector<float> target(source.size());
  std::vector<double> fastest(runs.size() + 2, INFINITY);
  for (int round = std::atoi(arguments[1]); round > 0; --round) {
    fastest[0] = std::min(fastest[0], nanoseconds([] { multiply_adds(REPEATS); }));
    fastest[1] = std::min(fastest[1], nanoseconds([&] { copy(source, &target); }));
    for (size_t i = 0; i < runs.size(); ++i) fastest[i + 2] = std::min(fastest[i + 2], nanoseconds([&] { runs[i](); }));
  }
  std::printf("%g\n%g\n", 1e9 * REPEATS * BLOCKS * PIXELS * BLOCK / fastest[0],
              2e9 * source.size() * sizeof(float) / fastest[1]);
  for (size_t i = 0; i < runs.size(); ++i) std::printf("%g\n", fastest[i + 2]);
}
