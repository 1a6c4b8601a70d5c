#include "decoder/model.h"

#include <cmath>

#include "core/status.h"

namespace bitdistill {
namespace {

constexpr int64_t kMostLayers = 4096;
constexpr int64_t kMostHeads = 4096;
constexpr int64_t kMostExperts = 65536;
constexpr int64_t kMostHeadDim = 4096;
constexpr int64_t kMostPositions = INT64_C(1) << 26;

bool in_range(int64_t value, int64_t most) { return value >= 1 && value <= most; }

int copy_floats(const float* data, size_t count, std::vector<float>* out) {
  if (data == nullptr) return count == 0 ? BD_OK : BD_ERROR_NULL_POINTER;
  for (size_t i = 0; i < count; ++i) {
    if (!std::isfinite(data[i])) return BD_ERROR_SCALE;
  }
  out->assign(data, data + count);
  return BD_OK;
}

// `count` weights, or none; q_norm and k_norm may have `other` instead.
int copy_norm(const bd_norm& norm, int64_t count, int64_t other, NormWeights* out) {
  if (norm.weight == nullptr) return norm.count == 0 ? BD_OK : BD_ERROR_NULL_POINTER;
  if (norm.count != static_cast<size_t>(count) && norm.count != static_cast<size_t>(other)) return BD_ERROR_MODEL;
  if (!(norm.eps >= 0.0f && std::isfinite(norm.eps))) return BD_ERROR_ARGUMENT;
  out->eps = norm.eps;
  return copy_floats(norm.weight, norm.count, &out->weight);
}

// A matrix of `cols` columns; floats have as many rows as there are bytes for.
int open_table(const bd_table& table, int64_t cols, Table* out) {
  if (table.data == nullptr) return BD_ERROR_NULL_POINTER;
  if (table.kind < BD_TABLE_PACKED || table.kind > BD_TABLE_FLOAT16) return BD_ERROR_ARGUMENT;
  out->kind = static_cast<bd_table_kind>(table.kind);
  out->data = static_cast<const uint8_t*>(table.data);
  out->cols = cols;
  if (out->packed()) {
    BD_RETURN_IF_ERROR(open_matrix(table.data, table.bytes, &out->matrix));
    out->rows = out->matrix.rows;
    return out->matrix.cols == cols ? BD_OK : BD_ERROR_MODEL;
  }
  const size_t element = out->kind == BD_TABLE_FLOAT32 ? sizeof(float) : sizeof(uint16_t);
  if (reinterpret_cast<uintptr_t>(table.data) % element != 0) return BD_ERROR_ALIGNMENT;
  const size_t row_bytes = static_cast<size_t>(cols) * element;
  const size_t rows = table.bytes / row_bytes;
  if (table.bytes % row_bytes != 0 || rows < 1 || rows > static_cast<size_t>(BD_MAX_ROWS)) return BD_ERROR_BUFFER_SIZE;
  out->rows = static_cast<int64_t>(rows);
  return BD_OK;
}

int open_adapter(const bd_adapter& adapter, Projection* out) {
  if (adapter.a == nullptr || adapter.b == nullptr) {
    const bool none = adapter.a == adapter.b && adapter.a_count == 0 && adapter.b_count == 0 && adapter.rank == 0;
    return none ? BD_OK : BD_ERROR_NULL_POINTER;
  }
  if (!in_range(adapter.rank, BD_MAX_COLS)) return BD_ERROR_SHAPE;
  BD_RETURN_IF_ERROR(open_table({BD_TABLE_FLOAT32, adapter.a, adapter.a_count * sizeof(float)}, out->weight.cols, &out->a));
  BD_RETURN_IF_ERROR(open_table({BD_TABLE_FLOAT32, adapter.b, adapter.b_count * sizeof(float)}, out->weight.rows, &out->b));
  return out->a.rows == adapter.rank && out->b.rows == adapter.rank ? BD_OK : BD_ERROR_BUFFER_SIZE;
}

int open_projection(const bd_projection& projection, int64_t cols, Projection* out) {
  BD_RETURN_IF_ERROR(open_table(projection.weight, cols, &out->weight));
  if (projection.bias != nullptr && projection.bias_count != static_cast<size_t>(out->weight.rows)) return BD_ERROR_MODEL;
  BD_RETURN_IF_ERROR(copy_floats(projection.bias, projection.bias_count, &out->bias));
  BD_RETURN_IF_ERROR(open_adapter(projection.adapter, out));
  return copy_norm(projection.sub_norm, cols, cols, &out->sub_norm);
}

// Projections of the same input whose rows, one after another, make `rows`.
int open_projections(const bd_projection* projections, int count, int64_t cols, int64_t rows, std::vector<Projection>* out) {
  out->resize(static_cast<size_t>(count));
  int64_t sum = 0;
  for (int i = 0; i < count; ++i) {
    Projection& projection = (*out)[static_cast<size_t>(i)];
    BD_RETURN_IF_ERROR(open_projection(projections[i], cols, &projection));
    sum += projection.weight.rows;
  }
  return sum == rows ? BD_OK : BD_ERROR_MODEL;
}

// An embedding or output head.
int open_vocabulary(const bd_table& table, const Model& model, Table* out) {
  if (table.kind == BD_TABLE_SPLIT) {
    BD_RETURN_IF_ERROR(open_split(table.data, table.bytes, &out->split));
    out->kind = BD_TABLE_SPLIT;
    out->data = static_cast<const uint8_t*>(table.data);
    out->rows = out->split.rows;
    out->cols = out->split.cols;
    return out->rows == model.vocab_size && out->cols == model.hidden_size ? BD_OK : BD_ERROR_MODEL;
  }
  BD_RETURN_IF_ERROR(open_table(table, model.hidden_size, out));
  if (out->rows == model.vocab_size) return BD_OK;
  return out->packed() ? BD_ERROR_MODEL : BD_ERROR_BUFFER_SIZE;
}

int open_mlp(const bd_projection* gate_up, int gate_up_count, const bd_projection& down, int64_t hidden, int64_t inner,
             Mlp* out) {
  BD_RETURN_IF_ERROR(open_projections(gate_up, gate_up_count, hidden, 2 * inner, &out->gate_up));
  BD_RETURN_IF_ERROR(open_projection(down, inner, &out->down));
  return out->down.weight.rows == hidden ? BD_OK : BD_ERROR_MODEL;
}

int open_mixture(const bd_mixture& mixture, int64_t hidden, Layer* out) {
  if (mixture.experts == nullptr) return BD_ERROR_NULL_POINTER;
  if (!in_range(mixture.expert_count, kMostExperts) || !in_range(mixture.experts_per_token, mixture.expert_count) ||
      !in_range(mixture.intermediate_size, BD_MAX_COLS)) {
    return BD_ERROR_SHAPE;
  }
  if (!in_range(mixture.gate_up_count, 2)) return BD_ERROR_ARGUMENT;
  BD_RETURN_IF_ERROR(open_table(mixture.router, hidden, &out->router));
  if (out->router.packed() || out->router.rows != mixture.expert_count) return BD_ERROR_MODEL;
  out->experts_per_token = mixture.experts_per_token;
  out->normalise = mixture.normalise != 0;
  out->mlps.resize(static_cast<size_t>(mixture.expert_count));
  for (size_t i = 0; i < out->mlps.size(); ++i) {
    const bd_expert& expert = mixture.experts[i];
    BD_RETURN_IF_ERROR(
        open_mlp(expert.gate_up, mixture.gate_up_count, expert.down, hidden, mixture.intermediate_size, &out->mlps[i]));
  }
  return BD_OK;
}

int build_layer(const bd_layer& layer, const Model& model, Layer* out) {
  const int64_t hidden = model.hidden_size;
  const bool mixture = layer.mixture.router.data != nullptr;
  if (!in_range(layer.qkv_count, 3) || !(mixture || in_range(layer.gate_up_count, 2))) return BD_ERROR_ARGUMENT;
  if (layer.rope < -1 || layer.rope >= static_cast<int64_t>(model.ropes.size()) || layer.window < 0) {
    return BD_ERROR_ARGUMENT;
  }
  out->rope = layer.rope;
  out->window = layer.window;
  BD_RETURN_IF_ERROR(copy_norm(layer.input_norm, hidden, hidden, &out->input_norm));
  BD_RETURN_IF_ERROR(copy_norm(layer.post_attention_norm, hidden, hidden, &out->post_attention_norm));
  BD_RETURN_IF_ERROR(copy_norm(layer.pre_feedforward_norm, hidden, hidden, &out->pre_feedforward_norm));
  BD_RETURN_IF_ERROR(copy_norm(layer.post_feedforward_norm, hidden, hidden, &out->post_feedforward_norm));
  BD_RETURN_IF_ERROR(copy_norm(layer.q_norm, model.head_dim, model.q_size(), &out->q_norm));
  BD_RETURN_IF_ERROR(copy_norm(layer.k_norm, model.head_dim, model.kv_size(), &out->k_norm));
  BD_RETURN_IF_ERROR(open_projections(layer.qkv, layer.qkv_count, hidden, model.qkv_size(), &out->qkv));
  BD_RETURN_IF_ERROR(open_projection(layer.o, model.q_size(), &out->o));
  if (out->o.weight.rows != hidden) return BD_ERROR_MODEL;
  if (mixture) return open_mixture(layer.mixture, hidden, out);
  out->mlps.resize(1);
  return open_mlp(layer.gate_up, layer.gate_up_count, layer.down, hidden, model.intermediate_size, &out->mlps[0]);
}

}  // namespace

int build_model(const bd_decoder_config& config, Model* model) {
  if (config.layers == nullptr || (config.rope_count != 0 && config.ropes == nullptr)) return BD_ERROR_NULL_POINTER;
  if (!in_range(config.vocab_size, BD_MAX_ROWS) || !in_range(config.hidden_size, BD_MAX_COLS) ||
      !in_range(config.intermediate_size, BD_MAX_COLS) || !in_range(config.head_dim, kMostHeadDim) ||
      !in_range(config.heads, kMostHeads) || !in_range(config.kv_heads, kMostHeads) ||
      !in_range(config.layer_count, kMostLayers) || !in_range(config.max_positions, kMostPositions) || config.rope_count < 0 ||
      config.rope_count > kMostLayers) {
    return BD_ERROR_SHAPE;
  }
  if (config.heads % config.kv_heads != 0 || config.heads * config.head_dim > BD_MAX_COLS) return BD_ERROR_SHAPE;
  if (config.activation < BD_SILU || config.activation > BD_RELU_SQUARED) return BD_ERROR_ARGUMENT;
  if (config.kv_dtype != BD_FLOAT32 && config.kv_dtype != BD_FLOAT16 && config.kv_dtype != BD_SCALED_INT8) {
    return BD_ERROR_ARGUMENT;
  }
  for (const float value : {config.embedding_scale, config.attention_scale, config.attention_softcap, config.logit_softcap}) {
    if (!std::isfinite(value)) return BD_ERROR_SCALE;
  }
  if (config.attention_softcap < 0.0f || config.logit_softcap < 0.0f) return BD_ERROR_ARGUMENT;

  model->vocab_size = config.vocab_size;
  model->hidden_size = config.hidden_size;
  model->intermediate_size = config.intermediate_size;
  model->head_dim = config.head_dim;
  model->max_positions = config.max_positions;
  model->heads = config.heads;
  model->kv_heads = config.kv_heads;
  model->embedding_scale = config.embedding_scale;
  model->attention_scale = config.attention_scale;
  model->attention_softcap = config.attention_softcap;
  model->logit_softcap = config.logit_softcap;
  model->activation = static_cast<bd_activation>(config.activation);
  model->kv_dtype = static_cast<bd_dtype>(config.kv_dtype);

  model->ropes.resize(static_cast<size_t>(config.rope_count));
  for (int i = 0; i < config.rope_count; ++i) {
    const bd_rope& rope = config.ropes[i];
    if (rope.count < 1 || rope.count > static_cast<size_t>(config.head_dim / 2)) return BD_ERROR_MODEL;
    if (!std::isfinite(rope.attention_scaling)) return BD_ERROR_SCALE;
    BD_RETURN_IF_ERROR(copy_floats(rope.inv_freq, rope.count, &model->ropes[static_cast<size_t>(i)].inv_freq));
    model->ropes[static_cast<size_t>(i)].attention_scaling = rope.attention_scaling;
  }
  BD_RETURN_IF_ERROR(open_vocabulary(config.embedding, *model, &model->embedding));
  if (config.head.data != nullptr) BD_RETURN_IF_ERROR(open_vocabulary(config.head, *model, &model->head));
  BD_RETURN_IF_ERROR(copy_norm(config.final_norm, config.hidden_size, config.hidden_size, &model->final_norm));
  model->layers.resize(static_cast<size_t>(config.layer_count));
  for (size_t i = 0; i < model->layers.size(); ++i) {
    BD_RETURN_IF_ERROR(build_layer(config.layers[i], *model, &model->layers[i]));
  }
  return BD_OK;
}

}  // namespace bitdistill
