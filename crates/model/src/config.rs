//! Reading config.json so that every complaint names its key.

use crate::{Activation, ModelError};
use serde_json::Value;

/// A config.json, or an object inside it.
pub(crate) struct Config<'a>(pub(crate) &'a Value);

impl<'a> Config<'a> {
    /// The value at `key`, if present and not null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn typed<T>(
        &self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        self.get(key).map(|v| read(v).ok_or_else(|| invalid(key, format!("{v} is not {what}")))).transpose()
    }

    /// A positive integer that must be there.
    pub(crate) fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.size_or(key)?.ok_or_else(|| invalid(key, "missing".into()))
    }

    /// A positive integer, if there.
    pub(crate) fn size_or(&self, key: &str) -> Result<Option<usize>, ModelError> {
        // 2^24 is beyond every published model and keeps products of two sizes far from overflow.
        let read = |v: &Value| v.as_u64().filter(|n| (1..=1 << 24).contains(n)).map(|n| n as usize);
        self.typed(key, "a size between 1 and 16777216", read)
    }

    /// A whole number from 0 on, `default` if absent.
    pub(crate) fn count(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        let read = |v: &Value| v.as_u64().filter(|&n| n <= 1 << 24).map(|n| n as usize);
        Ok(self.typed(key, "a number between 0 and 16777216", read)?.unwrap_or(default))
    }

    /// A finite number, if there.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a number", |v| v.as_f64().filter(|n| n.is_finite()))
    }

    /// A positive number; `default` if there is no such key, none if it is null.
    pub(crate) fn bound(&self, key: &str, default: Option<f32>) -> Result<Option<f32>, ModelError> {
        match (self.0.get(key), self.number(key)?) {
            (None, _) => Ok(default),
            (_, Some(bound)) if bound <= 0.0 => Err(invalid(key, format!("{bound} is not positive"))),
            (_, bound) => Ok(bound.map(|b| b as f32)),
        }
    }

    /// A flag, `default` if absent.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// Refuses a value other than `expected` at `key`, if there is one.
    pub(crate) fn only(&self, key: &str, expected: impl Into<Value>) -> Result<(), ModelError> {
        match self.get(key) {
            Some(value) if *value != expected.into() => Err(unsupported(key, value)),
            _ => Ok(()),
        }
    }

    /// The number of blocks.
    pub(crate) fn layers(&self, key: &str) -> Result<usize, ModelError> {
        match self.size(key)? {
            layers if layers > 4096 => Err(invalid(key, format!("{layers} is more than 4096"))),
            layers => Ok(layers),
        }
    }

    /// The number of heads at `key` and the channels of one, which divide `hidden` unless `head_dim` says otherwise.
    pub(crate) fn heads(&self, key: &str, hidden: usize) -> Result<(usize, usize), ModelError> {
        let heads = self.size(key)?;
        match self.size_or("head_dim")? {
            Some(dim) => Ok((heads, dim)),
            None if hidden.is_multiple_of(heads) => Ok((heads, hidden / heads)),
            None => Err(invalid(key, format!("{heads} does not divide hidden_size {hidden}"))),
        }
    }

    /// Key and value heads, which divide the `heads`; `default` if the config does not say.
    pub(crate) fn kv_heads(&self, heads: usize, default: usize) -> Result<usize, ModelError> {
        let key = "num_key_value_heads";
        match self.size_or(key)?.unwrap_or(default) {
            kv_heads if heads.is_multiple_of(kv_heads) => Ok(kv_heads),
            kv_heads => Err(invalid(key, format!("{kv_heads} does not divide the {heads} attention heads"))),
        }
    }

    /// Which of the layers have a sliding window, if `layer_types` says so.
    pub(crate) fn sliding(&self, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
        let Some(types) = self.get("layer_types") else { return Ok(None) };
        let types = types.as_array().filter(|t| t.len() == layers);
        let types =
            types.ok_or_else(|| invalid("layer_types", format!("not a list of {layers} layer types")))?;
        let slides = |t: &Value| match t.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(unsupported("layer_types", t)),
        };
        types.iter().map(slides).collect::<Result<_, _>>().map(Some)
    }

    /// The activation function at `key`, by the names of transformers.
    pub(crate) fn activation(&self, key: &str, default: Activation) -> Result<Activation, ModelError> {
        match self.text(key)? {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu" | "gelu_python") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            Some("relu") => Ok(Activation::Relu),
            Some(other) => Err(unsupported(key, other)),
        }
    }

    /// Which of the classes `PREFIX…` of transformers the checkpoint was saved from, without the prefix; it says what the
    /// head is. `default` where the config does not say.
    pub(crate) fn class(&self, prefix: &str, default: Option<&'a str>) -> Result<&'a str, ModelError> {
        let Some(value) = self.get("architectures") else {
            return default.ok_or_else(|| {
                let message =
                    format!("missing; it says which head the checkpoint has, as in [\"{prefix}Model\"]");
                invalid("architectures", message)
            });
        };
        let first = value.as_array().and_then(|names| names.first()).and_then(Value::as_str);
        let name =
            first.ok_or_else(|| invalid("architectures", format!("{value} is not a list of names")))?;
        name.strip_prefix(prefix).ok_or_else(|| unsupported("architectures", name))
    }

    /// Refuses a checkpoint saved from another class than `prefix` and `class`.
    pub(crate) fn only_class(&self, prefix: &str, class: &'a str) -> Result<(), ModelError> {
        match self.class(prefix, Some(class))? {
            found if found == class => Ok(()),
            other => Err(unsupported("architectures", format!("{prefix}{other}"))),
        }
    }

    /// The number of classes.
    pub(crate) fn labels(&self) -> Result<usize, ModelError> {
        match self.get("id2label") {
            Some(Value::Object(labels)) if !labels.is_empty() => Ok(labels.len()),
            Some(other) => Err(invalid("id2label", format!("{other} is no object of labels"))),
            None => Ok(self.size_or("num_labels")?.unwrap_or(2)),
        }
    }

    /// A height and a width: two numbers, or one for both.
    pub(crate) fn pair(&self, key: &str) -> Result<[usize; 2], ModelError> {
        let value = self.get(key).ok_or_else(|| invalid(key, "missing".into()))?;
        let both = value.as_array().map_or(vec![value; 2], |both| both.iter().collect());
        // 2^16 pixels a side keep products of sizes far from overflow.
        let side = |v: &&Value| v.as_u64().filter(|n| (1..=1 << 16).contains(n)).map(|n| n as usize);
        match both.iter().map(side).collect::<Vec<_>>()[..] {
            [Some(height), Some(width)] => Ok([height, width]),
            _ => Err(invalid(key, format!("{value} is no height and width between 1 and 65536"))),
        }
    }

    /// A string, if there.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }
}

pub(crate) fn invalid(key: &str, message: String) -> ModelError {
    ModelError::Config { key: key.into(), message }
}

pub(crate) fn unsupported(key: &str, value: impl ToString) -> ModelError {
    ModelError::Unsupported { key: key.into(), value: value.to_string() }
}
