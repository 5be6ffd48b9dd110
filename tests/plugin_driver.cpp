// The C++ plugin as TensorRT would drive it, for tests/unit/test_tensorrt_plugin.py: through the virtual functions of
// the interface alone, from the creator to the launch on a serialised copy.
#include <NvInferRuntime.h>

#include <memory>
#include <string.h>

using namespace nvinfer1;

extern "C" IPluginCreatorInterface *const *getCreators(int32_t &count);

namespace {

IPluginCreatorV3One &creator() {
  int32_t count = 0;
  return *static_cast<IPluginCreatorV3One *>(getCreators(count)[0]);
}

std::unique_ptr<IPluginV3> create(int32_t heads, float scale, TensorRTPhase phase = TensorRTPhase::kBUILD) {
  const PluginField fields[] = {{"heads", &heads, PluginFieldType::kINT32, 1},
                                {"scale", &scale, PluginFieldType::kFLOAT32, 1}};
  const PluginFieldCollection all{2, fields};
  return std::unique_ptr<IPluginV3>(creator().createPlugin("node", &all, phase));
}

template <class T>
T *capability(IPluginV3 &plugin, PluginCapabilityType type) {
  return static_cast<T *>(plugin.getCapabilityInterface(type));
}

struct Constant final : apiv::VDimensionExpr {
  explicit Constant(int64_t v) : value(v) {}
  bool isConstant() const override { return true; }
  int64_t getConstantValue() const override { return value; }
  bool isSizeTensor() const override { return false; }
  int64_t value;
};

struct Expression final : IDimensionExpr {
  explicit Expression(int64_t v) : constant(v) { mImpl = &constant; }
  Constant constant;
};

struct NoExpressions final : IExprBuilder {
  NoExpressions() { mImpl = nullptr; }
};

PluginTensorDesc tensor(const int64_t *shape, int32_t type, int32_t format = 0) {
  return {{3, {shape[0], shape[1], shape[2]}}, static_cast<DataType>(type), static_cast<TensorFormat>(format), 1.f};
}

}  // namespace

extern "C" {

const char *driver_names(int32_t which) {
  const auto &c = creator();
  return which == 0 ? c.getPluginName() : which == 1 ? c.getPluginVersion() : c.getPluginNamespace();
}

// The type of a field that the creator names, -1 for others.
int32_t driver_field(const char *name) {
  const PluginFieldCollection &all = *creator().getFieldNames();
  for (int i = 0; i < all.nbFields; i++)
    if (strcmp(all.fields[i].name, name) == 0) return static_cast<int32_t>(all.fields[i].type);
  return -1;
}

int32_t driver_creates(int32_t heads, float scale) { return create(heads, scale) != nullptr; }

// What the plugin says of tensor `position`, among three inputs and the output of these types and formats.
int32_t driver_supports(int32_t heads, int32_t position, const int64_t *shape, const int32_t *types,
                        const int32_t *formats) {
  const auto plugin = create(heads, 1.f);
  DynamicPluginTensorDesc all[4]{};
  for (int i = 0; i < 4; i++) all[i].desc = tensor(shape, types[i], formats[i]);
  return capability<IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD)
      ->supportsFormatCombination(position, all, 3, 1);
}

// The shape and type of the output.
int32_t driver_output(const int64_t *query, const int64_t *key, int32_t type, int64_t *shape, int32_t *out_type) {
  const auto plugin = create(1, 1.f);
  auto &build = *capability<IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD);
  const Expression q0(query[0]), q1(query[1]), q2(query[2]), k0(key[0]), k1(key[1]), k2(key[2]);
  const DimsExprs in[] = {{3, {&q0, &q1, &q2}}, {3, {&k0, &k1, &k2}}, {3, {&k0, &k1, &k2}}};
  DimsExprs out{};
  NoExpressions none;
  const DataType types[] = {static_cast<DataType>(type), static_cast<DataType>(type), static_cast<DataType>(type)};
  if (build.getOutputShapes(in, 3, nullptr, 0, &out, 1, none) || out.nbDims != 3) return 1;
  for (int i = 0; i < 3; i++) shape[i] = out.d[i]->getConstantValue();
  DataType made{};
  if (build.getOutputDataTypes(&made, 1, types, 3)) return 1;
  *out_type = static_cast<int32_t>(made);
  return build.getNbOutputs() != 1 || build.getWorkspaceSize(nullptr, 0, nullptr, 0) != 0;
}

// A plugin that was cloned, serialised, made again for the run and attached to a context, run once.
int32_t driver_run(int32_t heads, float scale, int32_t type, const int64_t *query, const int64_t *key,
                   const void *const *inputs, void *output) {
  const auto first = create(heads, scale);
  const std::unique_ptr<IPluginV3> copy(first->clone());
  const PluginFieldCollection *kept =
      capability<IPluginV3OneRuntime>(*copy, PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
  const std::unique_ptr<IPluginV3> loaded(creator().createPlugin("node", kept, TensorRTPhase::kRUNTIME));
  const std::unique_ptr<IPluginV3> attached(
      capability<IPluginV3OneRuntime>(*loaded, PluginCapabilityType::kRUNTIME)->attachToContext(nullptr));
  auto &run = *capability<IPluginV3OneRuntime>(*attached, PluginCapabilityType::kRUNTIME);
  const PluginTensorDesc in[] = {tensor(query, type), tensor(key, type), tensor(key, type)}, out = tensor(query, type);
  void *outputs[] = {output};
  if (run.onShapeChange(in, 3, &out, 1)) return -1;
  return run.enqueue(in, &out, inputs, outputs, nullptr, nullptr);
}
}
