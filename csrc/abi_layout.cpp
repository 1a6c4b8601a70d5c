// How the compiler laid out the structures of the C ABI, for callers that declare them in another language.
#include "bitdistill.h"

namespace {

#define STRUCTURE(type) {#type, "", 0, sizeof(type)}
#define FIELD(type, name) {#type, #name, offsetof(type, name), sizeof(type::name)}

// In the order of the header.
constexpr bd_layout_row kRows[] = {
    STRUCTURE(bd_weight_info),
    FIELD(bd_weight_info, format),
    FIELD(bd_weight_info, tensor_scale),
    FIELD(bd_weight_info, rows),
    FIELD(bd_weight_info, cols),
    FIELD(bd_weight_info, group_size),
    FIELD(bd_weight_info, groups),

    STRUCTURE(bd_layout_row),
    FIELD(bd_layout_row, structure),
    FIELD(bd_layout_row, field),
    FIELD(bd_layout_row, offset),
    FIELD(bd_layout_row, bytes),

    STRUCTURE(bd_norm),
    FIELD(bd_norm, weight),
    FIELD(bd_norm, count),
    FIELD(bd_norm, eps),

    STRUCTURE(bd_table),
    FIELD(bd_table, kind),
    FIELD(bd_table, data),
    FIELD(bd_table, bytes),

    STRUCTURE(bd_adapter),
    FIELD(bd_adapter, a),
    FIELD(bd_adapter, a_count),
    FIELD(bd_adapter, b),
    FIELD(bd_adapter, b_count),
    FIELD(bd_adapter, rank),

    STRUCTURE(bd_projection),
    FIELD(bd_projection, weight),
    FIELD(bd_projection, bias),
    FIELD(bd_projection, bias_count),
    FIELD(bd_projection, sub_norm),
    FIELD(bd_projection, adapter),

    STRUCTURE(bd_rope),
    FIELD(bd_rope, inv_freq),
    FIELD(bd_rope, count),
    FIELD(bd_rope, attention_scaling),

    STRUCTURE(bd_expert),
    FIELD(bd_expert, gate_up),
    FIELD(bd_expert, down),

    STRUCTURE(bd_mixture),
    FIELD(bd_mixture, router),
    FIELD(bd_mixture, experts),
    FIELD(bd_mixture, expert_count),
    FIELD(bd_mixture, experts_per_token),
    FIELD(bd_mixture, gate_up_count),
    FIELD(bd_mixture, normalise),
    FIELD(bd_mixture, intermediate_size),

    STRUCTURE(bd_layer),
    FIELD(bd_layer, input_norm),
    FIELD(bd_layer, post_attention_norm),
    FIELD(bd_layer, pre_feedforward_norm),
    FIELD(bd_layer, post_feedforward_norm),
    FIELD(bd_layer, q_norm),
    FIELD(bd_layer, k_norm),
    FIELD(bd_layer, qkv),
    FIELD(bd_layer, qkv_count),
    FIELD(bd_layer, gate_up_count),
    FIELD(bd_layer, gate_up),
    FIELD(bd_layer, o),
    FIELD(bd_layer, down),
    FIELD(bd_layer, rope),
    FIELD(bd_layer, window),
    FIELD(bd_layer, mixture),

    STRUCTURE(bd_decoder_config),
    FIELD(bd_decoder_config, vocab_size),
    FIELD(bd_decoder_config, hidden_size),
    FIELD(bd_decoder_config, intermediate_size),
    FIELD(bd_decoder_config, head_dim),
    FIELD(bd_decoder_config, max_positions),
    FIELD(bd_decoder_config, heads),
    FIELD(bd_decoder_config, kv_heads),
    FIELD(bd_decoder_config, layer_count),
    FIELD(bd_decoder_config, rope_count),
    FIELD(bd_decoder_config, layers),
    FIELD(bd_decoder_config, ropes),
    FIELD(bd_decoder_config, embedding),
    FIELD(bd_decoder_config, head),
    FIELD(bd_decoder_config, final_norm),
    FIELD(bd_decoder_config, embedding_scale),
    FIELD(bd_decoder_config, attention_scale),
    FIELD(bd_decoder_config, attention_softcap),
    FIELD(bd_decoder_config, logit_softcap),
    FIELD(bd_decoder_config, activation),
    FIELD(bd_decoder_config, kv_dtype),
};

}  // namespace

extern "C" int bd_layout(const bd_layout_row** rows, size_t* count) {
  if (rows == nullptr || count == nullptr) return BD_ERROR_NULL_POINTER;
  *rows = kRows;
  *count = sizeof kRows / sizeof kRows[0];
  return BD_OK;
}
