// `facesdk::FusedAttention` as a TensorRT plugin: query (b, s, heads * dim), key and value (r, t, heads * dim), result
// as the query; r divides b, and b / r successive rows of the query share a row of keys. TensorRT loads the library
// with IPluginRegistry::loadLibrary; it needs nothing of TensorRT but the header.
#include <NvInferRuntime.h>

#include <new>
#include <string.h>

#include "../src/arguments.h"
#include "packed.h"

namespace facesdk {
namespace {

using namespace nvinfer1;

constexpr char NAME[] = "FusedAttention", VERSION[] = "1", NAMESPACE[] = "facesdk";
constexpr char HEADS[] = "heads", SCALE[] = "scale";
constexpr int INPUTS = 3, OUTPUT = INPUTS, RANK = 3;
constexpr int32_t FAILED = 1;

struct Attributes {
  int32_t heads = 0;
  float scale = 0.f;

  bool valid() const { return heads > 0 && scale > 0.f && isfinite(scale); }

  bool take(const PluginField &field) {
    if (field.data == nullptr || field.length != 1) return false;
    if (strcmp(field.name, HEADS) == 0 && field.type == PluginFieldType::kINT32)
      heads = *static_cast<const int32_t *>(field.data);
    else if (strcmp(field.name, SCALE) == 0 && field.type == PluginFieldType::kFLOAT32)
      scale = *static_cast<const float *>(field.data);
    return true;
  }
};

bool has_kernel(int64_t width, int32_t heads) {
  return width % heads == 0 && width / heads <= INT32_MAX &&
         with_head_dim(static_cast<int>(width / heads), false, [](auto) { return true; });
}

int64_t volume(const Dims &dims) { return dims.d[0] * dims.d[1] * dims.d[2]; }

// Whether the sizes are those of one attention, and fit the kernel's 32-bit counts.
bool fits(const Dims &query, const Dims &key, const Dims &value, int32_t heads) {
  if (query.nbDims != RANK || key.nbDims != RANK || value.nbDims != RANK) return false;
  const bool same = key.d[0] == value.d[0] && key.d[1] == value.d[1];
  const bool wide = query.d[2] == key.d[2] && key.d[2] == value.d[2] && has_kernel(query.d[2], heads);
  return same && wide && key.d[0] > 0 && query.d[0] % key.d[0] == 0 && key.d[0] <= INT32_MAX &&
         key.d[1] <= INT32_MAX && query.d[0] / key.d[0] * query.d[1] <= INT32_MAX;
}

class Attention final : public IPluginV3,
                        public IPluginV3OneCore,
                        public IPluginV3OneBuild,
                        public IPluginV3OneRuntime {
 public:
  explicit Attention(const Attributes &attributes) : attributes_(attributes) {}

  IPluginCapability *getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore *>(this);
      case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild *>(this);
      case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime *>(this);
    }
    return nullptr;
  }

  IPluginV3 *clone() noexcept override { return new (std::nothrow) Attention(attributes_); }
  IPluginV3 *attachToContext(IPluginResourceContext *) noexcept override { return clone(); }

  const char *getPluginName() const noexcept override { return NAME; }
  const char *getPluginVersion() const noexcept override { return VERSION; }
  const char *getPluginNamespace() const noexcept override { return NAMESPACE; }

  // -- build ----------------------------------------------------------------------------------------------------

  int32_t getNbOutputs() const noexcept override { return 1; }

  int32_t getOutputDataTypes(DataType *out, int32_t outputs, const DataType *in, int32_t inputs) const
      noexcept override {
    if (inputs != INPUTS || outputs != 1) return FAILED;
    out[0] = in[0];
    return 0;
  }

  int32_t getOutputShapes(const DimsExprs *in, int32_t inputs, const DimsExprs *, int32_t, DimsExprs *out,
                          int32_t outputs, IExprBuilder &) noexcept override {
    if (inputs != INPUTS || outputs != 1 || in[0].nbDims != RANK) return FAILED;
    out[0] = in[0];
    return 0;
  }

  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc *all, int32_t inputs,
                                 int32_t outputs) noexcept override {
    if (inputs != INPUTS || outputs != 1 || position > OUTPUT) return false;
    const PluginTensorDesc &tensor = all[position].desc;
    const bool sixteen = tensor.type == DataType::kHALF || tensor.type == DataType::kBF16;
    return sixteen && tensor.type == all[0].desc.type && tensor.format == TensorFormat::kLINEAR &&
           tensor.dims.nbDims == RANK && has_kernel(tensor.dims.d[2], attributes_.heads);
  }

  int32_t configurePlugin(const DynamicPluginTensorDesc *, int32_t, const DynamicPluginTensorDesc *, int32_t)
      noexcept override {
    return 0;
  }

  // -- run ------------------------------------------------------------------------------------------------------

  int32_t onShapeChange(const PluginTensorDesc *in, int32_t inputs, const PluginTensorDesc *, int32_t)
      noexcept override {
    return inputs == INPUTS && fits(in[0].dims, in[1].dims, in[2].dims, attributes_.heads) ? 0 : FAILED;
  }

  int32_t enqueue(const PluginTensorDesc *in, const PluginTensorDesc *, const void *const *inputs,
                  void *const *outputs, void *, cudaStream_t stream) noexcept override {
    const Dims &query = in[0].dims, &key = in[1].dims;
    if (!fits(query, key, in[2].dims, attributes_.heads)) return FAILED;
    if (volume(query) == 0) return 0;
    const auto count = [](int64_t n) { return static_cast<int32_t>(n); };
    const Packed packed{inputs[0], inputs[1], inputs[2], outputs[0],
                        count(key.d[0]), count(query.d[0] / key.d[0] * query.d[1]), count(key.d[1]),
                        attributes_.heads, count(query.d[2] / attributes_.heads),
                        in[0].type == DataType::kHALF ? FACESDK_FP16 : FACESDK_BF16, attributes_.scale};
    const facesdk_attention arguments = arguments_of(packed);
    return facesdk_attention_forward(&arguments, stream);
  }

  const PluginFieldCollection *getFieldsToSerialize() noexcept override {
    fields_[0] = {HEADS, &attributes_.heads, PluginFieldType::kINT32, 1};
    fields_[1] = {SCALE, &attributes_.scale, PluginFieldType::kFLOAT32, 1};
    collection_ = {2, fields_};
    return &collection_;
  }

 private:
  Attributes attributes_;
  PluginField fields_[2];
  PluginFieldCollection collection_;
};

class Creator final : public IPluginCreatorV3One {
 public:
  IPluginV3 *createPlugin(const char *, const PluginFieldCollection *fields, TensorRTPhase) noexcept override {
    Attributes attributes;
    for (int i = 0; i < fields->nbFields; i++)
      if (!attributes.take(fields->fields[i])) return nullptr;
    return attributes.valid() ? new (std::nothrow) Attention(attributes) : nullptr;
  }

  const PluginFieldCollection *getFieldNames() noexcept override { return &names_; }
  const char *getPluginName() const noexcept override { return NAME; }
  const char *getPluginVersion() const noexcept override { return VERSION; }
  const char *getPluginNamespace() const noexcept override { return NAMESPACE; }

 private:
  const PluginField fields_[2] = {{HEADS, nullptr, PluginFieldType::kINT32, 1},
                                  {SCALE, nullptr, PluginFieldType::kFLOAT32, 1}};
  const PluginFieldCollection names_ = {2, fields_};
};

}  // namespace
}  // namespace facesdk

extern "C" {

FACESDK_API nvinfer1::IPluginCreatorInterface *const *getCreators(int32_t &count) {
  static facesdk::Creator creator;
  static nvinfer1::IPluginCreatorInterface *const creators[] = {&creator};
  count = 1;
  return creators;
}

FACESDK_API void setLoggerFinder(nvinfer1::ILoggerFinder *) {}
}
