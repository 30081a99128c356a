//! Names and order of rows of the llama family in GGUF and in Hugging Face's checkpoints.

/// Parts of a block: Hugging Face's names and GGUF's.
const PARTS: [(&str, &str); 11] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

/// What lies outside of the blocks.
const REST: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// GGUF's name of the tensor that Hugging Face calls `name`.
pub fn to_gguf(name: &str) -> Option<String> {
    let (base, suffix) = split(name)?;
    if let Some((_, to)) = REST.iter().find(|r| r.0 == base) {
        return Some(format!("{to}.{suffix}"));
    }
    let (layer, part) = base.strip_prefix("model.layers.")?.split_once('.')?;
    let (_, to) = PARTS.iter().find(|p| p.0 == part)?;
    Some(format!("blk.{}.{to}.{suffix}", layer.parse::<u32>().ok()?))
}

/// Hugging Face's name of the tensor that GGUF calls `name`.
pub fn from_gguf(name: &str) -> Option<String> {
    let (base, suffix) = split(name)?;
    if let Some((to, _)) = REST.iter().find(|r| r.1 == base) {
        return Some(format!("{to}.{suffix}"));
    }
    let (layer, part) = base.strip_prefix("blk.")?.split_once('.')?;
    let (to, _) = PARTS.iter().find(|p| p.1 == part)?;
    Some(format!("model.layers.{}.{to}.{suffix}", layer.parse::<u32>().ok()?))
}

fn split(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))
}

/// Heads whose rows are interleaved in GGUF's architecture `arch`, for a tensor or layer that Hugging Face calls `name`:
/// llama.cpp's rotary form for llama pairs neighbours, Hugging Face's the two halves of a head.
pub fn interleaved_heads(arch: &str, name: &str, heads: usize, kv_heads: usize) -> Option<usize> {
    let layer = name.strip_suffix(".weight").or(name.strip_suffix(".bias")).unwrap_or(name);
    match layer.rsplit('.').next() {
        _ if arch != "llama" => None,
        Some("q_proj") => Some(heads),
        Some("k_proj") => Some(kv_heads),
        _ => None,
    }
}

/// Which of Hugging Face's rows is row `row` of GGUF's, for `rows` rows of so many heads.
pub fn source_row(row: usize, rows: usize, heads: Option<usize>) -> usize {
    let Some(heads) = heads else { return row };
    let dim = (rows / heads.max(1)).max(1);
    let (head, within) = (row / dim, row % dim);
    head * dim + within / 2 + within % 2 * (dim / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_sides() {
        for (ours, theirs) in [
            ("model.layers.7.mlp.up_proj.weight", "blk.7.ffn_up.weight"),
            ("model.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias"),
            ("lm_head.weight", "output.weight"),
            ("model.norm.weight", "output_norm.weight"),
        ] {
            assert_eq!(to_gguf(ours).as_deref(), Some(theirs));
            assert_eq!(from_gguf(theirs).as_deref(), Some(ours));
        }
        for unknown in ["model.layers.0.moe.weight", "something", "blk.x.ffn_up.weight", "blk.0.ffn_up.scale"]
        {
            assert_eq!((to_gguf(unknown), from_gguf(unknown)), (None, None));
        }
    }

    #[test]
    fn rotary_halves_become_neighbours() {
        // Two heads of four: halves (0 1 | 2 3) become pairs 0 2, 1 3.
        let rows: Vec<usize> = (0..8).map(|r| source_row(r, 8, Some(2))).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(source_row(3, 8, None), 3);
        let name = "model.layers.0.self_attn.k_proj.bias";
        assert_eq!(interleaved_heads("llama", name, 4, 2), Some(2));
        assert_eq!(interleaved_heads("qwen2", name, 4, 2), None);
        assert_eq!(interleaved_heads("llama", "model.layers.0.self_attn.v_proj", 4, 2), None);
    }
}
