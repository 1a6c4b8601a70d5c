// A decoder as the forward pass reads it: checked, with copies of everything small.
#pragma once

#include <cstdint>
#include <vector>

#include "bitdistill.h"
#include "kernels/activations.h"
#include "kernels/matrix.h"
#include "kernels/split.h"

namespace bitdistill {

struct NormWeights {
  std::vector<float> weight;  // empty: no norm
  float eps = 0.0f;

  bool exists() const { return !weight.empty(); }
  Norm as_norm() const { return {exists() ? weight.data() : nullptr, eps}; }
};

// A matrix: packed, or floats, row by row; an embedding or head also split.
struct Table {
  bd_table_kind kind = BD_TABLE_PACKED;
  const uint8_t* data = nullptr;
  int64_t rows = 0, cols = 0;
  Matrix matrix{};  // if packed
  Split split{};

  bool exists() const { return data != nullptr; }
  bool packed() const { return kind == BD_TABLE_PACKED; }
  bool is_split() const { return kind == BD_TABLE_SPLIT; }
  const uint8_t* float_row(int64_t row) const {
    return data + static_cast<size_t>(row * cols) * (kind == BD_TABLE_FLOAT32 ? sizeof(float) : sizeof(uint16_t));
  }
};

struct Projection {
  Table weight;
  std::vector<float> bias;
  NormWeights sub_norm;
  Table a, b;  // of an adapter

  const float* bias_or_null() const { return bias.empty() ? nullptr : bias.data(); }
};

struct Mlp {
  std::vector<Projection> gate_up;
  Projection down;

  int64_t intermediate_size() const { return down.weight.cols; }
};

struct Layer {
  NormWeights input_norm, post_attention_norm, pre_feedforward_norm, post_feedforward_norm, q_norm, k_norm;
  std::vector<Projection> qkv;
  Projection o;
  std::vector<Mlp> mlps;  // one, or the experts of a mixture
  Table router;           // of a mixture
  int64_t experts_per_token = 0;
  bool normalise = false;
  int rope = -1;
  int64_t window = 0;
};

struct Rope {
  std::vector<float> inv_freq;
  float attention_scaling = 1.0f;
};

struct Model {
  int64_t vocab_size, hidden_size, intermediate_size, head_dim, max_positions;
  int64_t heads, kv_heads;
  float embedding_scale, attention_scale, attention_softcap, logit_softcap;
  bd_activation activation;
  bd_dtype kv_dtype;
  std::vector<Layer> layers;
  std::vector<Rope> ropes;
  Table embedding, head;
  NormWeights final_norm;

  int64_t q_size() const { return heads * head_dim; }
  int64_t kv_size() const { return kv_heads * head_dim; }
  int64_t qkv_size() const { return q_size() + 2 * kv_size(); }
};

// Throws std::bad_alloc.
int build_model(const bd_decoder_config& config, Model* model);

}  // namespace bitdistill
