/* Deployed networks as one operator, by MXNet's extension interface (mx.library): inference on the CPU.
 *
 * The backend 'LPRNet' of optimize_for takes the largest parts of a graph that consist of
 *
 *   3x3 convolutions with padding 1 or a Pad of 1 before them and stride 1 or 2, of one group or depthwise
 *   1x1 convolutions
 *   ReLU, ReLU6, elementwise sums, L2 normalization over channels
 *   3x3 max pooling with stride 2, the concatenation of two halves with the channel shuffle of two groups
 *   global average pooling, flattening and dense layers after it
 *
 * and makes each an operator that follows a plan. In the plan, layers that work pixel by pixel on the same feature map
 * are one step: an LPR module, a depthwise separable module, a unit of ShuffleNetV2. A step goes over its output in
 * strips of rows, between whose layers nothing leaves the cache. The feature maps between steps take turns in two or
 * three buffers. Weights are packed when the operator first runs, and again when MXNet says that they were written.
 *
 * A convolution or dense layer is computed in 8 bits where the graph says so: its weight is
 * broadcast_mul(Cast(int8), scales of channels), and its input went through _contrib_quantize_v2 and
 * _contrib_dequantize. These are then parts of the layers, as are sums with what was rounded so. All else is float32.
 */
#include <omp.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "kernels.h"
#include "mxnet/lib_api.h"

namespace {

using namespace lprnet;
using namespace mxnet::ext;
typedef std::unordered_map<std::string, std::string> Attributes;

/* Networks that are kept, and for each of them sets of parameters, and for those shapes with their buffers. */
constexpr size_t KEPT = 4;

// ---------------------------------------------------------------------------------------------------------------------
// From the graph to layers

enum Kind {
  INPUT, DENSE, POINTWISE, DEPTHWISE, ADD, ACTIVATE, NORMALIZE, INTERLEAVE, QUANTIZE, DEQUANTIZE, LARGEST, AVERAGE,
  FLATTEN, QUANTIZE_VECTOR, FULLY_CONNECTED
};

/* How numbers are held: in whole steps, in 8 bits with a sign or without, or as they are (step 0). */
struct Format {
  float step = 0;
  bool is_signed = false;
  /* What is added to the elements. */
  int zero() const { return is_signed ? ZERO : 0; }
  float lowest() const { return is_signed ? -127 : 0; }
  float highest() const { return is_signed ? 127 : 255; }
};

struct Layer {
  Kind kind;
  /* Layers whose outputs it takes. */
  std::vector<int> inputs;
  /* Inputs of the subgraph: the array of an INPUT, and parameters. */
  int array = -1, weight = -1, bias = -1;
  /* The scales of a weight in 8 bits, and with it the format of the input. */
  int scales = -1;
  Format input_format;
  /* Of the output. */
  Format format;
  int stride = 1;
  /* Rows and columns of zeros before and behind the image. */
  int before = 0, behind = 0;
  float eps = 0;
  /* The activation: what it leaves of a value. */
  float low = -INFINITY, high = INFINITY;
  /* A layer whose output is added before the activation. */
  int addend = -1;
  bool folded = false;
  bool in_8_bits() const { return scales >= 0; }
};

std::string attribute(const Node& node, const char* name, const char* otherwise) {
  const auto found = node.attrs.find(name);
  return found == node.attrs.end() ? otherwise : found->second;
}

bool is_true(const std::string& value) { return value == "True" || value == "1"; }

/* Two numbers as MXNet writes them, "(1, 1)" or "[1,1]", both `value`. */
bool both(const std::string& text, int value) {
  int found[2];
  char end;
  return std::sscanf(text.c_str(), " %*[([] %d , %d %c", &found[0], &found[1], &end) == 3 && (end == ')' || end == ']')
      && found[0] == value && found[1] == value;
}

bool is_variable(const Node& node, size_t slot) {
  return slot < node.inputs.size() && node.inputs[slot].node->op == "null";
}

/* Whether a node's second input is a weight in 8 bits. */
bool has_small_weight(const Node& node) {
  const Node& scaled = *node.inputs[1].node;
  return scaled.op == "broadcast_mul" && is_variable(scaled, 1) && scaled.inputs[0].node->op == "Cast"
      && is_variable(*scaled.inputs[0].node, 0);
}

/* Whether the inputs from the second on are parameters: a weight, and a bias or none. */
bool has_parameters(const Node& node, bool no_bias) {
  return node.inputs.size() == (no_bias ? 2 : 3) && (is_variable(node, 1) || has_small_weight(node))
      && (no_bias || is_variable(node, 2));
}

/* The variable that a node's weight comes from. */
const Node& weight_of(const Node& node) {
  const Node& weight = *node.inputs[1].node;
  return weight.op == "broadcast_mul" ? *weight.inputs[0].node->inputs[0].node : weight;
}

/* Whether each group of a convolution has one input, as far as the graph knows the shape of the weight. */
bool may_be_depthwise(const Node& node) {
  const Node& weight = weight_of(node);
  for (const char* name : {MX_STR_SHAPE, "__shape__"}) {
    int inputs;
    if (std::sscanf(attribute(weight, name, "").c_str(), " %*[([] %*d , %d", &inputs) == 1 && inputs > 0)
      return inputs == 1;
  }
  return true;
}

/* The node that quantizes what `node` takes as its only input from it, as _contrib_dequantize does; or none. */
const Node* quantizing(const Node& node) {
  const Node* const source = node.op == "_contrib_dequantize" ? node.inputs[0].node : nullptr;
  if (!source || source->op != "_contrib_quantize_v2") return nullptr;
  for (int entry = 0; entry < 3; ++entry)
    if (node.inputs[entry].node != source || node.inputs[entry].entry != entry) return nullptr;
  for (const NodeEntry& user : source->outputs)
    if (user.node != &node) return nullptr;
  return source;
}

/* Whether what a node quantizes is for dense layers alone. */
bool is_for_dense_layers(const Node& quantize) {
  for (const NodeEntry& user : quantize.outputs)
    for (const NodeEntry& layer : user.node->outputs)
      if (layer.node->op != "FullyConnected") return false;
  return true;
}

/* The node whose output `node` takes first, if it has the operator `op` and no other users. */
const Node* sole(const Node* node, const char* op) {
  const Node* const source = node && !node->inputs.empty() ? node->inputs[0].node : nullptr;
  return source && source->op == op && source->outputs.size() == 1 ? source : nullptr;
}

bool has_format(const Node& quantize, Format* format) {
  const float low = std::stof(attribute(quantize, "min_calib_range", "nan"));
  const float high = std::stof(attribute(quantize, "max_calib_range", "nan"));
  const std::string type = attribute(quantize, "out_type", "int8");
  format->is_signed = type == "int8";
  /* As MXNet counts them. */
  format->step = format->is_signed ? std::max(std::fabs(low), std::fabs(high)) / 127.5f : high / 255.5f;
  return (type == "int8" || (type == "uint8" && low == 0)) && format->step > 0 && std::isfinite(format->step);
}

std::string without_spaces(std::string text) {
  text.erase(std::remove(text.begin(), text.end(), ' '), text.end());
  return text;
}

/* The node of a padding with zeros, of one row and column behind the image or at both ends, that only `node` uses. */
const Node* padding(const Node& node, Layer* layer) {
  const Node* const pad = sole(&node, "Pad");
  if (!pad || attribute(*pad, "mode", "") != "constant" || std::stof(attribute(*pad, "constant_value", "0")) != 0)
    return nullptr;
  const std::string widths = without_spaces(attribute(*pad, "pad_width", ""));
  if (widths == "(0,0,0,0,1,1,1,1)") layer->before = 1;
  else if (widths != "(0,0,0,0,0,1,0,1)") return nullptr;
  layer->behind = 1;
  return pad;
}

bool is_convolution(const Node& node, Layer* layer, std::vector<const Node*>* nodes) {
  const std::string groups = attribute(node, "num_group", "1"), stride = attribute(node, "stride", "(1, 1)");
  const std::string kernel = attribute(node, "kernel", ""), pad = attribute(node, "pad", "(0, 0)");
  layer->stride = both(stride, 2) ? 2 : 1;
  if (!has_parameters(node, is_true(attribute(node, "no_bias", "False"))) || !(layer->stride == 2 || both(stride, 1))
      || !both(attribute(node, "dilate", "(1, 1)"), 1) || attribute(node, "layout", "NCHW") != "NCHW")
    return false;
  if (both(kernel, 1)) {
    layer->kind = POINTWISE;
    return groups == "1" && both(pad, 0) && layer->stride == 1;
  }
  if (!both(kernel, 3)) return false;
  if (both(pad, 1)) {
    layer->before = layer->behind = 1;
  } else {
    const Node* const pad_node = both(pad, 0) ? padding(node, layer) : nullptr;
    if (!pad_node) return false;
    nodes->push_back(pad_node);
  }
  layer->kind = groups == "1" ? DENSE : DEPTHWISE;
  return groups == "1" || (groups == attribute(node, "num_filter", "") && may_be_depthwise(node));
}

bool is_pooling(const Node& node, Layer* layer) {
  const std::string type = attribute(node, "pool_type", "max");
  if (attribute(node, "layout", "NCHW") != "NCHW") return false;
  if (is_true(attribute(node, "global_pool", "False"))) {
    layer->kind = AVERAGE;
    return type == "avg";
  }
  layer->kind = LARGEST;
  layer->stride = 2;
  layer->before = layer->behind = 1;
  return type == "max" && both(attribute(node, "kernel", ""), 3) && both(attribute(node, "stride", "(1, 1)"), 2)
      && both(attribute(node, "pad", "(0, 0)"), 1) && attribute(node, "pooling_convention", "valid") == "valid";
}

/* The channels of a node's output, as far as its own attributes and those of the nodes before it say; else 0. */
int channels_of(const Node* node) {
  while (node->op == "Activation" || node->op == "relu" || node->op == "clip" || node->op == "elemwise_add")
    node = node->inputs[0].node;
  return node->op == "Convolution" ? std::stoi(attribute(*node, "num_filter", "0")) : 0;
}

/* The nodes of Concat, Reshape, SwapAxis, Reshape that shuffle the channels of two halves, from the last; or none. */
std::vector<const Node*> shuffle(const Node& last) {
  const Node* const swap = last.op == "Reshape" ? sole(&last, "SwapAxis") : nullptr;
  const Node* const split = sole(swap, "Reshape");
  const Node* const concat = sole(split, "Concat");
  if (!concat || concat->inputs.size() != 2 || attribute(*concat, "dim", "1") != "1"
      || channels_of(concat->inputs[0].node) == 0
      || channels_of(concat->inputs[0].node) != channels_of(concat->inputs[1].node)
      || without_spaces(attribute(*split, "shape", "")) != "(0,-4,2,-1,-2)"
      || without_spaces(attribute(last, "shape", "")) != "(0,-3,-2)"
      || attribute(*swap, "dim1", "0") != "1" || attribute(*swap, "dim2", "0") != "2")
    return {};
  return {&last, swap, split, concat};
}

/* The layers of a graph. Nodes that the library does not know are left out, or, in a graph that is to be `whole`, an
 * error (std::out_of_range). */
struct Layers {
  std::vector<Layer> layers;
  /* By the last node of each. */
  std::unordered_map<const Node*, int> of;
  /* Nodes that are parts of layers. */
  std::vector<const Node*> covered;

  Layers(const Graph& graph, bool whole) {
    std::unordered_map<const Node*, int> variables;
    for (size_t i = 0; i < graph.inputs.size(); ++i) variables[graph.inputs[i]] = i;
    for (size_t i = 0; i < graph.size(); ++i) add(*graph.getNode(i), variables, whole);
  }

 private:
  /* Whether a layer gives a vector for each image. */
  bool is_flat(int layer) const { return layers[layer].kind >= AVERAGE; }

  void add(const Node& node, const std::unordered_map<const Node*, int>& variables, bool whole) {
    Layer layer;
    std::vector<const Node*> nodes = {&node};
    std::vector<const Node*> sources;
    if (node.op == "null") {
      layer.kind = INPUT;
      layer.array = variables.at(&node);
    } else if (!describe(node, &layer, &nodes)) {
      return;
    }
    const Node& first = *nodes.back();
    if (node.op != "null")
      for (size_t slot = 0; slot < (layer.kind == ADD || layer.kind == INTERLEAVE ? 2 : 1); ++slot)
        sources.push_back(first.inputs[slot].node);
    bool maps = false, vectors = false;
    for (const Node* source : sources) {
      const auto found = of.find(source);
      if (found != of.end() && layers[found->second].kind != INPUT) (is_flat(found->second) ? vectors : maps) = true;
      if (whole) layer.inputs.push_back(of.at(source));
    }
    const bool flat = layer.kind == FLATTEN || layer.kind == QUANTIZE_VECTOR || layer.kind == FULLY_CONNECTED;
    /* Of a convolution the kernel says that its input has four dimensions, of these the layer before. */
    const bool needs_known = layer.kind == ADD || layer.kind == ACTIVATE || layer.kind == NORMALIZE
        || layer.kind == QUANTIZE || layer.kind == DEQUANTIZE;
    if (flat ? !vectors : vectors) return;
    if (!whole && needs_known && !maps) return;
    if ((layer.kind >= DENSE && layer.kind <= DEPTHWISE) || layer.kind == FULLY_CONNECTED) {
      const Node& weight = *node.inputs[1].node;
      if (weight.op == "broadcast_mul") layer.scales = variables.at(weight.inputs[1].node);
      layer.weight = variables.at(&weight_of(node));
      if (node.inputs.size() > 2) layer.bias = variables.at(node.inputs[2].node);
    }
    of[&node] = layers.size();
    layers.push_back(layer);
    covered.insert(covered.end(), nodes.begin(), nodes.end());
  }

  /* What a node computes, and the nodes that belong to it, from the last. */
  bool describe(const Node& node, Layer* layer, std::vector<const Node*>* nodes) const {
    if (node.op == "Convolution")
      return is_convolution(node, layer, nodes) && (is_variable(node, 1) || takes_8_bits(node, layer, nodes));
    if (node.op == "_contrib_quantize_v2") {
      const auto source = of.find(node.inputs[0].node);
      layer->kind = source != of.end() && is_flat(source->second) ? QUANTIZE_VECTOR : QUANTIZE;
      return node.inputs.size() == 1 && has_format(node, &layer->format)
          && (layer->kind == QUANTIZE || is_for_dense_layers(node));
    }
    if (node.op == "_contrib_dequantize") {
      layer->kind = DEQUANTIZE;
      return quantizing(node) && has_format(*quantizing(node), &layer->input_format);
    }
    if (node.op == "Pooling") return is_pooling(node, layer);
    if (node.op == "Activation" || node.op == "relu") {
      layer->kind = ACTIVATE;
      layer->low = 0;
      return node.op == "relu" || attribute(node, "act_type", "") == "relu";
    }
    if (node.op == "clip") {
      layer->kind = ACTIVATE;
      layer->low = std::stof(attribute(node, "a_min", "nan"));
      layer->high = std::stof(attribute(node, "a_max", "nan"));
      /* So that the channels beyond the last stay 0. */
      return layer->low <= 0 && layer->high >= 0;
    }
    if (node.op == "elemwise_add") {
      layer->kind = ADD;
      return true;
    }
    if (node.op == "L2Normalization") {
      layer->kind = NORMALIZE;
      layer->eps = std::stof(attribute(node, "eps", "1e-10"));
      return attribute(node, "mode", "instance") == "channel";
    }
    if (node.op == "Flatten") {
      layer->kind = FLATTEN;
      return true;
    }
    if (node.op == "FullyConnected") {
      layer->kind = FULLY_CONNECTED;
      return has_parameters(node, is_true(attribute(node, "no_bias", "False")))
          && is_true(attribute(node, "flatten", "True"))
          && (is_variable(node, 1) || takes_8_bits(node, layer, nodes));
    }
    *nodes = shuffle(node);
    layer->kind = INTERLEAVE;
    return !nodes->empty();
  }

  /* Add the nodes that make 8 bits of weight and input: the layer takes the output of the node that quantizes, or the
   * input of a first convolution. */
  bool takes_8_bits(const Node& node, Layer* layer, std::vector<const Node*>* nodes) const {
    const Node* const dequantize = nodes->back()->inputs[0].node;
    const Node* const quantize = quantizing(*dequantize);
    if (!quantize || !has_format(*quantize, &layer->input_format)) return false;
    nodes->insert(nodes->end(), {node.inputs[1].node, node.inputs[1].node->inputs[0].node, dequantize});
    const bool is_first = quantize->inputs[0].node->op == "null" && dequantize->outputs.size() == 1;
    if (layer->kind == DENSE && is_first) nodes->push_back(quantize);
    else return of.count(quantize);
    return true;
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// From layers to steps

/* Layers that work pixel by pixel on feature maps of one size, or one other layer; the last one's output is kept. */
struct Step {
  std::vector<int> layers;
};

bool is_pixelwise(Kind kind) { return kind == POINTWISE || (kind >= ADD && kind <= DEQUANTIZE); }

struct Program {
  std::vector<Layer> layers;
  /* Steps of each image, then those of all images together, on vectors. */
  std::vector<Step> steps, tail;
  /* Layers whose outputs are those of the operator. */
  std::vector<int> outputs;
  /* Inputs of the operator that are feature maps, and parameters. */
  std::vector<int> maps, parameters;
  /* Those inputs that are weights in 8 bits. */
  std::vector<int> small;

  explicit Program(const std::string& json) {
    const std::unique_ptr<Graph> graph(Graph::fromString(json));
    Layers found(*graph, true);
    layers = found.layers;
    for (const NodeEntry& entry : graph->outputs) {
      const int index = found.of.at(entry.node);
      /* The operator gives arrays of float32, one for each layer. */
      if (entry.entry != 0 || layers[index].kind == QUANTIZE || layers[index].kind == QUANTIZE_VECTOR)
        throw std::runtime_error("an output is in 8 bits");
      outputs.push_back(index);
    }
    fold();
    group();
    for (const Layer& layer : layers) {
      if (layer.folded) continue;
      for (int parameter : {layer.weight, layer.scales, layer.bias})
        if (parameter >= 0) parameters.push_back(parameter);
      if (layer.in_8_bits()) small.push_back(layer.weight);
      for (int source : sources(layer))
        if (layers[source].kind == INPUT) maps.push_back(layers[source].array);
    }
  }

  std::vector<int> sources(const Layer& layer) const {
    std::vector<int> found = layer.inputs;
    if (layer.addend >= 0) found.push_back(layer.addend);
    return found;
  }

  bool is_flat(int layer) const { return layers[layer].kind >= AVERAGE; }

 private:
  /* Users of each layer's output; -1 is the operator's own output. */
  std::vector<std::vector<int> > users() const {
    std::vector<std::vector<int> > found(layers.size());
    for (size_t i = 0; i < layers.size(); ++i)
      if (!layers[i].folded)
        for (int source : sources(layers[i])) found[source].push_back(i);
    for (int output : outputs) found[output].push_back(-1);
    return found;
  }

  /* Make activations and sums part of the layers before them. */
  void fold() {
    const auto using_it = users();
    const auto can_take = [&](int index, Kind first, Kind last) {
      const Layer& layer = layers[index];
      return layer.kind >= first && layer.kind <= last && using_it[index].size() == 1 && layer.addend < 0
          && layer.low == -INFINITY && layer.high == INFINITY;
    };
    for (Layer& layer : layers)
      if (layer.kind == ACTIVATE && can_take(layer.inputs[0], DENSE, ADD)) replace(&layer, layer.inputs[0], -1);
    for (Layer& layer : layers)
      for (int side : {0, 1})
        if (layer.kind == ADD && !layer.folded && can_take(layer.inputs[side], POINTWISE, POINTWISE)) {
          const int index = layer.inputs[side];
          int addend = layer.inputs[1 - side];
          /* In 8 bits the summand is, too. */
          if (layers[index].in_8_bits()) {
            if (layers[addend].kind != DEQUANTIZE) continue;
            addend = layers[addend].inputs[0];
          }
          replace(&layer, index, addend);
        }
    const auto then_using_it = users();
    for (Layer& layer : layers) {
      if (layer.kind != QUANTIZE) continue;
      const int index = layer.inputs[0];
      const Layer& source = layers[index];
      if (then_using_it[index].size() != 1 || !(source.kind == NORMALIZE || source.in_8_bits())) continue;
      const Format format = layer.format;
      layer = source;
      layer.format = format;
      layers[index].folded = true;
    }
    /* Layers of 8 bits take what was quantized: nobody may be left who takes it as float32. */
    for (int i = layers.size() - 1; i >= 0; --i)
      if (layers[i].kind != INPUT && users()[i].empty()) layers[i].folded = true;
  }

  /* Put a layer, with the other summand, in the place of the activation or sum that takes its output. */
  void replace(Layer* after, int index, int addend) {
    const float low = after->low, high = after->high;
    *after = layers[index];
    after->low = low;
    after->high = high;
    after->addend = addend;
    layers[index].folded = true;
  }

  /* From the last layer to the first: a layer belongs to the step of its users if they all are in one and take it
   * pixel by pixel. */
  void group() {
    const auto using_it = users();
    std::vector<int> step_of(layers.size(), -1);
    for (int i = layers.size() - 1; i >= 0; --i) {
      if (layers[i].folded || using_it[i].empty()) continue;
      /* A dense convolution takes an input of the operator as it is. */
      if (layers[i].kind == INPUT && std::all_of(using_it[i].begin(), using_it[i].end(), [&](int user) {
            return user >= 0 && layers[user].kind == DENSE;
          })) continue;
      int step = -1;
      if (is_pixelwise(layers[i].kind) || layers[i].kind == DEPTHWISE) {
        for (int user : using_it[i]) {
          const int other = user >= 0 && is_pixelwise(layers[user].kind) ? step_of[user] : -2;
          step = step == -1 || step == other ? other : -2;
        }
      }
      step_of[i] = step >= 0 ? step : i;
    }
    for (size_t i = 0; i < layers.size(); ++i) {
      if (step_of[i] != (int)i) continue;
      Step step;
      for (size_t j = 0; j <= i; ++j)
        if (step_of[j] == (int)i) step.layers.push_back(j);
      (layers[i].kind > AVERAGE ? tail : steps).push_back(step);
    }
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Parameters

/* Memory that begins at a cache line. */
struct Floats {
  std::unique_ptr<float, decltype(&std::free)> data{nullptr, &std::free};
  size_t size = 0;
  void hold(size_t count) {
    if (count <= size) return;
    size = (count + 15) / 16 * 16;
    data.reset(static_cast<float*>(std::aligned_alloc(64, size * sizeof(float))));
    if (!data) throw std::bad_alloc();
    std::memset(data.get(), 0, size * sizeof(float));
  }
};

/* Elements of a type in a buffer of floats. */
template <class Element>
Element* as(float* data) { return reinterpret_cast<Element*>(data); }

/* What is known of an array at little cost: where it is, how often MXNet wrote to it, and some of its values, for the
 * case that another array was made at the same place. */
struct Stamp {
  const void* data;
  size_t version;
  int64_t size;
  std::array<float, 8> values;

  explicit Stamp(MXTensor& tensor) : data(tensor.data_ptr), version(tensor.verID), size(tensor.size()) {
    const int64_t last = values.size() - 1;
    for (int64_t i = 0; i <= last; ++i) {
      const int64_t at = size ? (size - 1) * i / last : 0;
      values[i] = !size ? 0 : tensor.dtype == kInt8 ? tensor.data<int8_t>()[at] : tensor.data<float>()[at];
    }
  }
  bool operator==(const Stamp& other) const {
    return data == other.data && version == other.version && size == other.size
        && !std::memcmp(values.data(), other.values.data(), sizeof(values));
  }
};

/* A layer's weight, packed for its kernel, and what becomes of the sums (see Rounding). */
struct SmallWeight {
  const int8_t* rows;
  Matrix<int32_t> matrix;
  const float *multiplier, *offset;
  float addend_multiplier;
};

/* The parameters of a program, packed for the kernels. */
struct Weights {
  std::vector<Stamp> stamps;
  /* Of layers in float32, and of those in 8 bits. */
  std::vector<Matrix<float> > matrices;
  std::vector<SmallWeight> small;
  /* Channels, or length of the vector, that a layer gives; 0 as its input has. */
  std::vector<int> channels;
  std::vector<Floats> memory, small_memory, rounding;

  Weights(const Program& program, std::vector<MXTensor>* arrays)
      : matrices(program.layers.size()), small(program.layers.size()), channels(program.layers.size()),
        memory(program.layers.size()), small_memory(program.layers.size()), rounding(program.layers.size()) {
    for (int parameter : program.parameters) stamps.emplace_back((*arrays)[parameter]);
    for (size_t i = 0; i < program.layers.size(); ++i) {
      const Layer& layer = program.layers[i];
      if (layer.weight < 0 || layer.folded) continue;
      MXTensor& weight = (*arrays)[layer.weight];
      const float* const bias = layer.bias < 0 ? nullptr : (*arrays)[layer.bias].data<float>();
      channels[i] = weight.shape[0];
      if (layer.kind == DEPTHWISE && weight.shape[1] != 1)
        throw std::runtime_error("a group of a convolution takes more than one channel, which MXNet computes if "
                                 "optimize_for is given the parameters (args)");
      if (layer.in_8_bits()) {
        pack_small(program, i, weight, (*arrays)[layer.scales].data<float>(), bias);
        continue;
      }
      if (layer.kind == FULLY_CONNECTED) matrices[i] = {weight.data<float>(), bias, (size_t)weight.shape[1]};
      else if (layer.kind == DEPTHWISE) pack_depthwise(i, weight.data<float>(), bias);
      else pack_floats(i, weight, bias);
    }
  }

 private:
  void pack_small(const Program& program, int index, MXTensor& tensor, const float* scales, const float* bias) {
    const Layer& layer = program.layers[index];
    const int rows = channels[index];
    const int8_t* const weight = tensor.data<int8_t>();
    const size_t padded = (size_t)blocks_of(rows) * BLOCK;
    rounding[index].hold(2 * padded);
    float* const multiplier = rounding[index].data.get();
    float* const offset = multiplier + padded;
    const float step = layer.format.step ? layer.format.step : 1;
    for (int row = 0; row < rows; ++row) {
      multiplier[row] = layer.input_format.step * scales[row] / step;
      offset[row] = bias ? bias[row] / step : 0;
    }
    SmallWeight& packed = small[index];
    packed = {weight, {}, multiplier, offset,
              layer.addend < 0 ? 0 : program.layers[layer.addend].format.step / step};
    const int zero = layer.input_format.zero();
    if (layer.kind == DEPTHWISE) {
      pack_depthwise_groups(index, weight, zero);
    } else if (layer.kind != FULLY_CONNECTED) {
      int32_t* const sums = pack<Element>(weight, tensor, &small_memory[index], &packed.matrix);
      const int64_t columns = tensor.size() / rows;
      for (int64_t i = 0; i < tensor.size(); ++i) sums[i / columns] -= zero * weight[i];
    }
  }

  /* Of weights: int8_t where an element is a byte. */
  typedef std::make_signed<Small>::type Element;

  void pack_floats(int index, MXTensor& tensor, const float* bias) {
    float* const biases = pack<float>(tensor.data<float>(), tensor, &memory[index], &matrices[index]);
    if (bias) std::copy(bias, bias + channels[index], biases);
  }

  /* The weight of a convolution that is not depthwise. Gives what the sums begin with, which is 0 until then. */
  template <class Part, class Number, class Value>
  static Number* pack(const Value* weight, const MXTensor& tensor, Floats* memory, Matrix<Number>* matrix) {
    constexpr int parts = sizeof(Number) / sizeof(Part);
    const int rows = tensor.shape[0], inputs = tensor.shape[1], taps = tensor.shape[2] * tensor.shape[3];
    /* Pixelwise, columns are groups of blocks of channels; else (row, group, column) of the kernel. */
    const int groups = (inputs + parts - 1) / parts;
    const size_t columns = taps == 1 ? blocks_of(inputs) * BLOCK / parts : 9 * groups, panel = columns * BLOCK;
    memory->hold(blocks_of(rows) * (panel + BLOCK));
    Number* const to = as<Number>(memory->data.get());
    for (int row = 0; row < rows; ++row)
      for (int c = 0; c < inputs; ++c)
        for (int k = 0; k < taps; ++k) {
          const size_t column = taps == 1 ? c / parts : (k / 3 * groups + c / parts) * 3 + k % 3;
          Number* const group = to + row / BLOCK * panel + column * BLOCK + row % BLOCK;
          reinterpret_cast<Part*>(group)[c % parts] = weight[((size_t)row * inputs + c) * taps + k];
        }
    *matrix = {to, to + blocks_of(rows) * panel, panel};
    return to + blocks_of(rows) * panel;
  }

  void pack_depthwise_groups(int index, const int8_t* weight, int zero) {
    small_memory[index].hold((size_t)blocks_of(channels[index]) * DEPTHWISE_PANEL);
    int32_t* const to = as<int32_t>(small_memory[index].data.get());
    for (int c = 0; c < channels[index]; ++c) {
      int32_t* const panel = to + c / BLOCK * DEPTHWISE_PANEL + c % BLOCK;
      int32_t& sum = panel[2 * DEPTHWISE_WEIGHTS];
      for (int k = 0; k < 9; ++k) {
        const int value = weight[9 * c + k];
        for (int first : {0, 1}) {
          int32_t* const group = depthwise_weight(panel, first, k / 3, k % 3);
          reinterpret_cast<Element*>(group)[(first + k / 3) % GROUP] = value;
        }
        sum -= zero * value;
      }
    }
    small[index].matrix = {to, nullptr, DEPTHWISE_PANEL};
  }

  void pack_depthwise(int layer, const float* weight, const float* bias) {
    memory[layer].hold((size_t)blocks_of(channels[layer]) * 10 * BLOCK);
    float* const to = memory[layer].data.get();
    for (int c = 0; c < channels[layer]; ++c)
      for (int k = 0; k < 10; ++k)
        to[(c / BLOCK * 10 + k) * BLOCK + c % BLOCK] = k < 9 ? weight[9 * c + k] : bias ? bias[c] : 0;
    matrices[layer] = {to, nullptr, 10 * BLOCK};
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Shapes and buffers

struct Size {
  int channels, height, width;
  int pixels() const { return height * width; }
  int blocks() const { return blocks_of(channels); }
};

/* Buffers of one pass. */
struct Workspace {
  /* By thread and buffer; only the first thread's are used where the threads share an image. */
  std::vector<std::vector<Floats> > maps;
  /* By thread. */
  std::vector<Floats> memory;
  /* By layer, for those that give vectors. */
  std::vector<Floats> vectors;
};

/* A program for inputs of one size: one for each image, whatever their number. */
class Plan {
 public:
  const std::vector<std::vector<int64_t> > shapes;

  Plan(const Program& program, const Weights& weights, const std::vector<std::vector<int64_t> >& shapes)
      : shapes(shapes), program(program), sizes(program.layers.size()), buffer(program.layers.size(), -1),
        offset(program.layers.size()) {
    for (size_t i = 0; i < program.layers.size(); ++i)
      if (!program.layers[i].folded) measure(i, weights);
    place();
  }

  /* A workspace that no other pass uses. */
  std::unique_ptr<Workspace> workspace() {
    if (idle.empty()) return std::unique_ptr<Workspace>(new Workspace());
    std::unique_ptr<Workspace> found = std::move(idle.back());
    idle.pop_back();
    return found;
  }
  void give_back(std::unique_ptr<Workspace> workspace) { idle.push_back(std::move(workspace)); }

  void run(const Weights& weights, std::vector<MXTensor>* arrays, std::vector<MXTensor>* outputs,
           Workspace* workspace) const;

 private:
  const Program& program;
  std::vector<Size> sizes;
  /* Of each layer, the buffer that holds its output, -1 for one within a step or a vector. */
  std::vector<int> buffer;
  std::vector<size_t> buffer_floats;
  /* Of each layer within a step, the floats of a row that come before it in the strip. */
  std::vector<size_t> offset;
  /* Of each step, the floats of a row in the strip. */
  std::vector<size_t> row_floats;
  /* Floats of the rows that a depthwise convolution in 8 bits works on. */
  size_t depthwise_rows = 0;
  std::vector<std::unique_ptr<Workspace> > idle;

  void measure(int index, const Weights& weights) {
    const Layer& layer = program.layers[index];
    Size& size = sizes[index];
    if (layer.kind == INPUT) {
      const auto found = std::find(program.maps.begin(), program.maps.end(), layer.array);
      if (found == program.maps.end()) return;
      const std::vector<int64_t>& shape = shapes[found - program.maps.begin()];
      size = {(int)shape[1], (int)shape[2], (int)shape[3]};
      return;
    }
    size = sizes[layer.inputs[0]];
    if (layer.kind == AVERAGE) size.height = size.width = 1;
    if (layer.kind == INTERLEAVE) size.channels *= 2;
    if (layer.kind == DENSE || layer.kind == DEPTHWISE || layer.kind == LARGEST) {
      const auto along = [&](int length) { return (length + layer.before + layer.behind - 3) / layer.stride + 1; };
      if (std::min(size.height, size.width) + layer.before + layer.behind < 3)
        throw std::runtime_error("a feature map is smaller than the kernel of a convolution");
      size = {size.channels, along(size.height), along(size.width)};
    }
    if (weights.channels[index]) size.channels = weights.channels[index];
  }

  /* Floats that a layer's output takes at `pixels` pixels. */
  size_t floats_of(int layer, size_t pixels) const {
    const size_t elements = sizes[layer].blocks() * pixels * BLOCK;
    return program.layers[layer].format.step ? elements / (sizeof(float) / sizeof(Small)) : elements;
  }

  /* Give the outputs of steps buffers, each free again after its last use, and those within steps their places. */
  void place() {
    std::map<int, size_t> last_use;
    for (size_t s = 0; s < program.steps.size(); ++s)
      for (int i : program.steps[s].layers)
        for (int source : program.sources(program.layers[i])) last_use[source] = s;
    for (int output : program.outputs) last_use[output] = program.steps.size();
    std::vector<bool> busy;
    for (size_t s = 0; s < program.steps.size(); ++s) {
      const std::vector<int>& layers = program.steps[s].layers;
      const int last = layers.back();
      size_t floats = 0;
      for (int i : layers) {
        if (program.layers[i].kind == DEPTHWISE && program.layers[i].in_8_bits())
          depthwise_rows = std::max(depthwise_rows, grouped_rows(sizes[program.layers[i].inputs[0]].width));
        if (i == last) break;
        offset[i] = floats;
        floats += floats_of(i, sizes[i].width);
      }
      const Layer& layer = program.layers[last];
      if (layer.kind == DENSE) floats = (size_t)layer.stride * dense_pitch(last);
      row_floats.push_back(floats);
      if (!program.is_flat(last)) {
        const size_t found = std::find(busy.begin(), busy.end(), false) - busy.begin();
        if (found == busy.size()) {
          busy.push_back(false);
          buffer_floats.push_back(0);
        }
        busy[found] = true;
        buffer[last] = found;
        buffer_floats[found] = std::max(buffer_floats[found], floats_of(last, sizes[last].pixels()));
      }
      for (const auto& use : last_use)
        if (use.second == s && buffer[use.first] >= 0) busy[buffer[use.first]] = false;
    }
  }

  /* Floats of a row of the input of a dense convolution, all channels with their zeros; or groups of 8 bits. */
  size_t dense_pitch(int layer) const { return (size_t)dense_groups(layer) * padded_width(layer); }

  int dense_groups(int layer) const {
    const int channels = sizes[program.layers[layer].inputs[0]].channels;
    return program.layers[layer].in_8_bits() ? (channels + GROUP - 1) / GROUP : channels;
  }

  int padded_width(int layer) const {
    return program.layers[layer].before + sizes[program.layers[layer].inputs[0]].width + program.layers[layer].behind;
  }

  /* Pieces of a step that are computed one after the other, or by several threads. */
  int pieces(size_t step, int threads) const {
    const int last = program.steps[step].layers.back();
    if (program.layers[last].kind == AVERAGE) return sizes[last].blocks();
    const int height = sizes[last].height;
    const size_t floats = std::max<size_t>(1, row_floats[step]);
    const int rows = std::max<int>(1, std::min<size_t>(STRIP / floats, (height + threads - 1) / threads));
    return (height + rows - 1) / rows;
  }

  /* Floats that a piece works on: rows and its strip. */
  size_t piece_floats(int threads) const {
    size_t most = 0;
    for (size_t s = 0; s < program.steps.size(); ++s) {
      const int last = program.steps[s].layers.back(), number = pieces(s, threads);
      const int rows = (sizes[last].height + number - 1) / number;
      const size_t floats = program.layers[last].kind == DENSE ? ((rows - 1) * program.layers[last].stride + 3)
          * dense_pitch(last) : rows * row_floats[s];
      most = std::max(most, floats);
    }
    return depthwise_rows + most;
  }

  /* What a piece of a step knows: its rows, and where feature maps are. */
  struct Piece {
    int image, first, end;
    std::vector<Floats>* maps;
    float* strip;
    /* Rows that a depthwise convolution in 8 bits works on. */
    float* rows;
  };

  template <class Element = float>
  Element* map_of(int layer, const Piece& piece) const {
    return as<Element>((*piece.maps)[buffer[layer]].data.get());
  }

  /* The pixels of a piece in a layer's output. */
  template <class Element = float>
  ViewOf<Element> view(int layer, const Piece& piece) const {
    const Size& size = sizes[layer];
    const int rows = piece.end - piece.first;
    if (buffer[layer] < 0)
      return {as<Element>(piece.strip + rows * offset[layer]), (size_t)rows * size.width * BLOCK};
    return {map_of<Element>(layer, piece) + (size_t)piece.first * size.width * BLOCK, (size_t)size.pixels() * BLOCK};
  }

  /* From low to high, in steps of the output. */
  Range range_of(const Layer& layer) const {
    if (!layer.format.step) return Range(layer.low, layer.high);
    return Range(std::max(layer.format.lowest(), std::nearbyint(layer.low / layer.format.step)),
                 std::min(layer.format.highest(), std::nearbyint(layer.high / layer.format.step)));
  }

  void run_piece(size_t step, int index, int pieces, int image, const Weights& weights, std::vector<MXTensor>* arrays,
                 std::vector<Floats>* maps, float* memory, std::vector<Floats>* vectors) const {
    const std::vector<int>& layers = program.steps[step].layers;
    const Size& size = sizes[layers.back()];
    if (program.layers[layers.back()].kind == AVERAGE) {
      const int from = program.layers[layers.back()].inputs[0], pixels = sizes[from].pixels();
      const Vector found = mean((*maps)[buffer[from]].data.get() + (size_t)index * pixels * BLOCK, pixels);
      std::memcpy((*vectors)[layers.back()].data.get() + (size_t)image * size.channels + index * BLOCK, &found,
                  std::min(BLOCK, size.channels - index * BLOCK) * sizeof(float));
      return;
    }
    const Piece piece = {image, size.height * index / pieces, size.height * (index + 1) / pieces, maps,
                         memory + depthwise_rows, memory};
    for (int layer : layers) run_layer(layer, piece, weights, arrays);
  }

  void run_layer(int index, const Piece& piece, const Weights& weights, std::vector<MXTensor>* arrays) const {
    const Layer& layer = program.layers[index];
    const Range range = range_of(layer);
    if (!layer.in_8_bits()) {
      run_layer(index, piece, weights, arrays, Result{
          view(index, piece), layer.addend < 0 ? View{nullptr, 0} : view(layer.addend, piece), range});
    } else if (layer.format.step) {
      run_layer(index, piece, weights, arrays, rounding<Small>(index, piece, weights, range));
    } else {
      run_layer(index, piece, weights, arrays, rounding<float>(index, piece, weights, range));
    }
  }

  template <class Element>
  Rounding<Element> rounding(int index, const Piece& piece, const Weights& weights, const Range& range) const {
    const Layer& layer = program.layers[index];
    const SmallWeight& weight = weights.small[index];
    ViewOf<const Small> addend = {nullptr, 0};
    int addend_zero = 0;
    if (layer.addend >= 0) {
      const ViewOf<Small> found = view<Small>(layer.addend, piece);
      addend = {found.data, found.pitch};
      addend_zero = program.layers[layer.addend].format.zero();
    }
    return {view<Element>(index, piece), addend, weight.multiplier, weight.offset, weight.addend_multiplier,
            addend_zero, layer.format.zero(), range};
  }

  void multiply_pixels(int index, const Piece& piece, const Weights& weights, const Result& result) const {
    const int source = program.layers[index].inputs[0];
    pointwise(view(source, piece), sizes[source].blocks(), (piece.end - piece.first) * sizes[index].width,
              weights.matrices[index], sizes[index].blocks(), result);
  }

  template <class Element>
  void multiply_pixels(int index, const Piece& piece, const Weights& weights, const Rounding<Element>& result) const {
    const int source = program.layers[index].inputs[0];
    pointwise(view<Small>(source, piece), sizes[source].blocks(), (piece.end - piece.first) * sizes[index].width,
              weights.small[index].matrix, sizes[index].blocks(), result);
  }

  void convolve_depthwise(int index, const Piece& piece, const Weights& weights, const Result& result) const {
    const Layer& layer = program.layers[index];
    const Size& in = sizes[layer.inputs[0]];
    const Matrix<float>& matrix = weights.matrices[index];
    for (int i = 0; i < sizes[index].blocks(); ++i)
      (layer.stride == 1 ? depthwise<1> : depthwise<2>)(
          map_of(layer.inputs[0], piece) + (size_t)i * in.pixels() * BLOCK, in.height, in.width, layer.before,
          matrix.weight + i * matrix.panel, piece.first, piece.end, sizes[index].width, i, result);
  }

  template <class Element>
  void convolve_depthwise(int index, const Piece& piece, const Weights& weights,
                          const Rounding<Element>& result) const {
    const Layer& layer = program.layers[index];
    const Size& in = sizes[layer.inputs[0]];
    const Matrix<int32_t>& matrix = weights.small[index].matrix;
    const auto convolve = layer.stride == 1 ? depthwise<1, Rounding<Element> > : depthwise<2, Rounding<Element> >;
    for (int i = 0; i < sizes[index].blocks(); ++i)
      convolve(map_of<Small>(layer.inputs[0], piece) + (size_t)i * in.pixels() * BLOCK, layer.input_format.zero(),
               in.height, in.width, layer.before, matrix.weight + i * matrix.panel, piece.first, piece.end,
               sizes[index].width, i, as<int32_t>(piece.rows), result);
  }

  template <class To>
  void run_layer(int index, const Piece& piece, const Weights& weights, std::vector<MXTensor>* arrays,
                 const To& result) const {
    const Layer& layer = program.layers[index];
    if (layer.kind == DENSE) {
      convolve(index, piece, weights, arrays, result);
    } else if (layer.kind == POINTWISE) {
      multiply_pixels(index, piece, weights, result);
    } else if (layer.kind == DEPTHWISE) {
      convolve_depthwise(index, piece, weights, result);
    } else if constexpr (std::is_same<To, Result>::value) {
      run_other(index, piece, arrays, result);
    }
  }

  /* A layer without a weight. */
  void run_other(int index, const Piece& piece, std::vector<MXTensor>* arrays, const Result& result) const {
    const Layer& layer = program.layers[index];
    const Size& size = sizes[index];
    const int pixels = (piece.end - piece.first) * size.width;
    const Format& format = layer.format;
    const Range range(format.lowest(), format.highest());
    switch (layer.kind) {
      case INPUT:
        for (int i = 0; i < size.blocks(); ++i)
          to_blocks(plain(index, piece.image, arrays) + (size_t)i * BLOCK * size.pixels(),
                    std::min(BLOCK, size.channels - i * BLOCK), size.pixels(), (size_t)piece.first * size.width,
                    (size_t)piece.end * size.width, map_of(index, piece) + (size_t)i * size.pixels() * BLOCK);
        break;
      case QUANTIZE:
        quantize(view(layer.inputs[0], piece), size.blocks(), pixels, 1 / format.step, view<Small>(index, piece),
                 format.zero(), range);
        break;
      case DEQUANTIZE:
        dequantize(view<Small>(layer.inputs[0], piece), layer.input_format.zero(), size.blocks(), pixels,
                   layer.input_format.step, result.to);
        break;
      case ADD:
        add(view(layer.inputs[0], piece), view(layer.inputs[1], piece), size.blocks(), pixels, result);
        break;
      case ACTIVATE:
        add(view(layer.inputs[0], piece), {nullptr, 0}, size.blocks(), pixels, result);
        break;
      case NORMALIZE:
        if (format.step)
          normalize(view(layer.inputs[0], piece), size.blocks(), pixels, layer.eps, 1 / format.step,
                    view<Small>(index, piece), format.zero(), range);
        else
          normalize(view(layer.inputs[0], piece), size.blocks(), pixels, layer.eps, result.to);
        break;
      case INTERLEAVE:
        interleave(view(layer.inputs[0], piece), view(layer.inputs[1], piece), size.blocks(), pixels, result.to);
        break;
      case LARGEST: {
        const Size& in = sizes[layer.inputs[0]];
        for (int i = 0; i < size.blocks(); ++i)
          largest(map_of(layer.inputs[0], piece) + (size_t)i * in.pixels() * BLOCK, in.height, in.width, piece.first,
                  piece.end, size.width, result.to.at(i, 0));
        break;
      }
      default:
        break;
    }
  }

  /* An input of the operator, of one image, as MXNet has it. */
  const float* plain(int layer, int image, std::vector<MXTensor>* arrays) const {
    return (*arrays)[program.layers[layer].array].data<float>() + (size_t)image * sizes[layer].channels
        * sizes[layer].pixels();
  }

  void convolve(int index, const Piece& piece, const Weights& weights, std::vector<MXTensor>* arrays,
                const Result& result) const {
    const size_t width = sizes[program.layers[index].inputs[0]].width;
    convolve(index, piece, weights.matrices[index], 0.0f, arrays,
             [width](const float* from, size_t, int, float* to) { std::memcpy(to, from, width * sizeof(float)); },
             result);
  }

  template <class Element>
  void convolve(int index, const Piece& piece, const Weights& weights, std::vector<MXTensor>* arrays,
                const Rounding<Element>& result) const {
    const Format& format = program.layers[index].input_format;
    const int width = sizes[program.layers[index].inputs[0]].width;
    const Range range(format.lowest(), format.highest());
    Small zeros[GROUP];
    std::fill(zeros, zeros + GROUP, (Small)format.zero());
    int32_t zero;
    std::memcpy(&zero, zeros, sizeof(zero));
    const auto quantize = [&](const float* from, size_t pitch, int number, int32_t* to) {
      const float* channels[GROUP];
      for (int i = 0; i < GROUP; ++i) channels[i] = from + i * pitch;
      quantize_groups(channels, number, width, 1 / format.step, range, format.zero(), to);
    };
    convolve(index, piece, weights.small[index].matrix, zero, arrays, quantize, result);
  }

  /* Around the image is `zero`; `read` makes a row of groups of rows of the operator's input. */
  template <class Number, class Read, class To>
  void convolve(int index, const Piece& piece, const Matrix<Number>& matrix, Number zero,
                std::vector<MXTensor>* arrays, const Read& read, const To& result) const {
    constexpr int parts = group_of<Number>();
    const Layer& layer = program.layers[index];
    const int source = layer.inputs[0], width = sizes[index].width, groups = dense_groups(index);
    const Size& in = sizes[source];
    const size_t pitch = padded_width(index);
    const bool is_plain = buffer[source] < 0;
    const int rows = (piece.end - piece.first - 1) * layer.stride + 3;
    Number* const strip = as<Number>(piece.strip);
    for (int row = 0; row < rows; ++row)
      for (int group = 0; group < groups; ++group) {
        Number* const to = strip + ((size_t)row * groups + group) * pitch;
        const int y = piece.first * layer.stride - layer.before + row, c = group * parts;
        to[0] = to[pitch - 1] = zero;
        if (y < 0 || y >= in.height) {
          std::fill(to, to + pitch, zero);
        } else if (is_plain) {
          read(plain(source, piece.image, arrays) + ((size_t)c * in.height + y) * in.width, in.pixels(),
               std::min(parts, in.channels - c), to + layer.before);
        } else {
          const Number* const from = map_of<Number>(source, piece)
              + ((size_t)c / BLOCK * in.pixels() * BLOCK + (size_t)y * in.width * BLOCK + c % BLOCK) / parts;
          for (int x = 0; x < in.width; ++x) to[layer.before + x] = from[(size_t)x * BLOCK / parts];
        }
      }
    for (int row = 0; row < piece.end - piece.first; ++row)
      dense_row(strip + (size_t)row * layer.stride * groups * pitch, pitch, groups, layer.stride, width, matrix,
                sizes[index].blocks(), result.row((size_t)row * width));
  }

  /* Elements [4 group, 4 group + 4) of the output of a layer on vectors, for all images. */
  void run_tail(int index, int group, int images, const Weights& weights, std::vector<Floats>* vectors) const {
    const Layer& layer = program.layers[index];
    const int size = sizes[index].channels, first = 4 * group, rows = std::min(4, size - first);
    const Range range = range_of(layer);
    for (int image = 0; image < images; ++image) {
      const size_t in = (size_t)image * sizes[layer.inputs[0]].channels, out = (size_t)image * size + first;
      float* const x = (*vectors)[layer.inputs[0]].data.get();
      float* const y = (*vectors)[index].data.get();
      if (layer.kind == FLATTEN) {
        std::memcpy(y + out, x + in + first, rows * sizeof(float));
      } else if (layer.kind == QUANTIZE_VECTOR) {
        const float* const from = x + in + first;
        for (int row = 0; row < rows; ++row)
          as<Small>(y)[out + row] =
              (int)std::nearbyint(range.number(from[row] * (1 / layer.format.step))) + layer.format.zero();
      } else if (layer.in_8_bits()) {
        run_dense_rows(index, first, rows, as<Small>(x) + in, weights.small[index], range, y + out);
      } else {
        run_dense_rows(first, rows, x + in, weights.matrices[index], range, y + out);
      }
    }
  }

  static void run_dense_rows(int first, int rows, const float* x, const Matrix<float>& matrix, const Range& range,
                             float* y) {
    const float* const weight = matrix.weight + first * matrix.panel;
    const float* const bias = matrix.bias ? matrix.bias + first : nullptr;
    if (rows == 4) {
      dots<4>(x, matrix.panel, weight, bias, range, y);
      return;
    }
    for (int row = 0; row < rows; ++row)
      dots<1>(x, matrix.panel, weight + row * matrix.panel, bias ? bias + row : nullptr, range, y + row);
  }

  void run_dense_rows(int index, int first, int rows, const Small* x, const SmallWeight& weight, const Range& range,
                      float* y) const {
    const Layer& layer = program.layers[index];
    const int size = sizes[layer.inputs[0]].channels, zero = layer.input_format.zero();
    for (int row = first; row < first + rows; ++row) {
      int32_t sum;
      dots<1>(x, zero, size, weight.rows + (size_t)row * size, &sum);
      y[row - first] = range(rounded(Vector{} + (float)sum * weight.multiplier[row])[0] + weight.offset[row]);
    }
  }

  /* An output of the operator that is a feature map, of one image, as MXNet has it. */
  void write(int output, int image, std::vector<Floats>* maps, std::vector<MXTensor>* outputs) const {
    const int layer = program.outputs[output];
    const Size& size = sizes[layer];
    if (program.is_flat(layer)) return;
    for (int i = 0; i < size.blocks(); ++i)
      from_blocks((*maps)[buffer[layer]].data.get() + (size_t)i * size.pixels() * BLOCK, size.channels - i * BLOCK,
                  size.pixels(), (*outputs)[output].data<float>() + ((size_t)image * size.channels + i * BLOCK)
                  * size.pixels());
  }
};

void Plan::run(const Weights& weights, std::vector<MXTensor>* arrays, std::vector<MXTensor>* outputs,
               Workspace* workspace) const {
  const int threads = std::max(1, omp_get_max_threads()), images = (*arrays)[program.maps[0]].shape[0];
  /* Each thread has images of its own, or all share one. */
  const bool own = images >= threads;
  workspace->maps.resize(threads);
  workspace->memory.resize(threads);
  workspace->vectors.resize(program.layers.size());
  for (int thread = 0; thread < threads; ++thread) {
    workspace->memory[thread].hold(piece_floats(own ? 1 : threads));
    if (thread > 0 && !own) continue;
    workspace->maps[thread].resize(buffer_floats.size());
    for (size_t i = 0; i < buffer_floats.size(); ++i) workspace->maps[thread][i].hold(buffer_floats[i]);
  }
  for (size_t i = 0; i < program.layers.size(); ++i)
    if (program.is_flat(i) && !program.layers[i].folded)
      workspace->vectors[i].hold((size_t)images * sizes[i].channels);
  const int steps = program.steps.size(), number = program.outputs.size();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int thread = omp_get_thread_num();
    float* const memory = workspace->memory[thread].data.get();
    if (own) {
      std::vector<Floats>* const maps = &workspace->maps[thread];
#pragma omp for schedule(dynamic)
      for (int image = 0; image < images; ++image) {
        for (int step = 0; step < steps; ++step)
          for (int index = 0, count = pieces(step, 1); index < count; ++index)
            run_piece(step, index, count, image, weights, arrays, maps, memory, &workspace->vectors);
        for (int output = 0; output < number; ++output) write(output, image, maps, outputs);
      }
    } else {
      std::vector<Floats>* const maps = &workspace->maps[0];
      for (int image = 0; image < images; ++image) {
        for (int step = 0; step < steps; ++step) {
          const int count = pieces(step, threads);
#pragma omp for schedule(dynamic)
          for (int index = 0; index < count; ++index)
            run_piece(step, index, count, image, weights, arrays, maps, memory, &workspace->vectors);
        }
#pragma omp for schedule(dynamic)
        for (int output = 0; output < number; ++output) write(output, image, maps, outputs);
      }
    }
    for (const Step& step : program.tail) {
      const int layer = step.layers.back(), groups = (sizes[layer].channels + 3) / 4;
#pragma omp for schedule(static)
      for (int group = 0; group < groups; ++group) run_tail(layer, group, images, weights, &workspace->vectors);
    }
  }
  for (int output = 0; output < number; ++output) {
    const int layer = program.outputs[output];
    if (program.is_flat(layer))
      std::memcpy((*outputs)[output].data<float>(), workspace->vectors[layer].data.get(),
                  (size_t)images * sizes[layer].channels * sizeof(float));
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// MXNet's interface

/* What is made of the parameters of a network: packed weights, and plans for shapes. */
struct Packed {
  const Weights weights;
  std::vector<std::shared_ptr<Plan> > plans;
  Packed(const Program& program, std::vector<MXTensor>* inputs) : weights(program, inputs) {}
};

/* A graph with what was made of it. Without static_alloc MXNet makes an operator for each pass, and blocks of the same
 * graph have operators of their own: all share this. */
class Network {
 public:
  explicit Network(const std::string& json) : json(json), program(json) {}

  const std::string json;

  void run(std::vector<MXTensor>* inputs, std::vector<MXTensor>* outputs) {
    for (size_t i = 0; i < inputs->size(); ++i) {
      const bool is_small = std::count(program.small.begin(), program.small.end(), (int)i);
      if ((*inputs)[i].dtype != (is_small ? kInt8 : kFloat32) || (*inputs)[i].stype != kDefaultStorage)
        throw std::runtime_error("it takes dense arrays of float32, and of int8 for weights in 8 bits");
    }
    std::shared_ptr<Packed> packed;
    std::shared_ptr<Plan> plan;
    std::unique_ptr<Workspace> workspace;
    {
      std::lock_guard<std::mutex> lock(mutex);
      packed = packed_for(inputs);
      plan = plan_for(inputs, packed.get());
      workspace = plan->workspace();
    }
    plan->run(packed->weights, inputs, outputs, workspace.get());
    std::lock_guard<std::mutex> lock(mutex);
    plan->give_back(std::move(workspace));
  }

  /* The network of a graph, one of the last few or a new one. */
  static std::shared_ptr<Network> of(const std::string& json) {
    static std::mutex mutex;
    static std::vector<std::shared_ptr<Network> > recent;
    std::lock_guard<std::mutex> lock(mutex);
    for (const auto& network : recent)
      if (network->json == json) return network;
    if (recent.size() == KEPT) recent.erase(recent.begin());
    recent.push_back(std::make_shared<Network>(json));
    return recent.back();
  }

 private:
  const Program program;
  std::mutex mutex;
  std::vector<std::shared_ptr<Packed> > packed;

  /* The parameters as they are now; they are packed again if MXNet wrote to one. */
  std::shared_ptr<Packed> packed_for(std::vector<MXTensor>* inputs) {
    for (const auto& known : packed) {
      bool current = true;
      for (size_t i = 0; current && i < program.parameters.size(); ++i)
        current = known->weights.stamps[i] == Stamp((*inputs)[program.parameters[i]]);
      if (current) return known;
    }
    if (packed.size() == KEPT) packed.erase(packed.begin());
    packed.push_back(std::make_shared<Packed>(program, inputs));
    return packed.back();
  }

  std::shared_ptr<Plan> plan_for(std::vector<MXTensor>* inputs, Packed* packed) {
    std::vector<std::vector<int64_t> > shapes;
    for (int map : program.maps) {
      shapes.push_back((*inputs)[map].shape);
      if (shapes.back().size() != 4) throw std::runtime_error("an input does not have four dimensions");
      shapes.back()[0] = 0;
    }
    for (const auto& plan : packed->plans)
      if (plan->shapes == shapes) return plan;
    if (packed->plans.size() == KEPT) packed->plans.erase(packed->plans.begin());
    packed->plans.push_back(std::make_shared<Plan>(program, packed->weights, shapes));
    return packed->plans.back();
  }
};

class Operator : public CustomStatefulOp {
 public:
  explicit Operator(const std::string& json) : network(Network::of(json)) {}

  MXReturnValue Forward(std::vector<MXTensor>* inputs, std::vector<MXTensor>* outputs, const OpResource&) override {
    try {
      network->run(inputs, outputs);
      return MX_SUCCESS;
    } catch (const std::exception& error) {
      MX_ERROR_MSG << "A deployed network failed as an operator: " << error.what() << ".";
      return MX_FAIL;
    }
  }

  MXReturnValue Backward(std::vector<MXTensor>*, std::vector<MXTensor>*, const OpResource&) override {
    MX_ERROR_MSG << "The operator of a deployed network is for inference: it has no gradient.";
    return MX_FAIL;
  }

 private:
  const std::shared_ptr<Network> network;
};

MXReturnValue create(const Attributes& attributes, const MXContext&, const std::vector<std::vector<unsigned> >&,
                     const std::vector<int>, CustomStatefulOp** instance) {
  try {
    *instance = CustomStatefulOp::create<Operator>(attributes.at(MX_STR_SUBGRAPH_SYM_JSON));
    return MX_SUCCESS;
  } catch (const std::exception& error) {
    MX_ERROR_MSG << "The operator's graph was not made by the backend LPRNet: " << error.what() << ".";
    return MX_FAIL;
  }
}

MXReturnValue supported(const Graph* graph, std::vector<int>* ids, const Attributes&) {
  const Layers found(*graph, false);
  const std::vector<const Node*>& covered = found.covered;
  for (size_t i = 0; i < graph->size(); ++i)
    /* -1: with any others. */
    if (graph->getNode(i)->op != "null" && std::count(covered.begin(), covered.end(), graph->getNode(i)))
      (*ids)[i] = -1;
  return MX_SUCCESS;
}

/* A part of one convolution alone is left to MXNet: the layout would have to be changed before and after it. */
MXReturnValue review(const Graph* graph, int, bool* accept, const Attributes&, Attributes*) {
  try {
    const Program program(graph->toString());
    *accept = std::count_if(program.layers.begin(), program.layers.end(), [](const Layer& layer) {
      return !layer.folded && layer.kind >= DENSE && layer.kind <= DEPTHWISE;
    }) > 1;
  } catch (const std::exception&) {
    *accept = false;
  }
  return MX_SUCCESS;
}

}  // namespace

REGISTER_OP(lprnet_network).setIsSubgraphOp().setCreateOpState(create, "cpu");

REGISTER_PARTITIONER(LPRNet).addStrategy("largest parts", "lprnet_network").setSupportedOps("largest parts", supported)
    .setReviewSubgraph("largest parts", review);

MXReturnValue initialize(int) { return MX_SUCCESS; }
