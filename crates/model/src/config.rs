//! Reading config.json so that every complaint names its key.

use crate::ModelError;
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

    /// A finite number, if there.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a number", |v| v.as_f64().filter(|n| n.is_finite()))
    }

    /// A flag, `default` if absent.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
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
