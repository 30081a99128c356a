//! Recipes in TOML files.

use super::Method;
use crate::{QuantizeError, Recipe};
use std::path::Path;

/// The built-in recipe of this name, or else the recipe in the TOML file at this path. Fields that the file leaves out
/// have the default recipe's values; the name is that of the file. With other methods than `fpq`, `correct` and `feedback` are
/// off unless the file says otherwise.
///
/// # Errors
/// [`QuantizeError::UnknownRecipe`] for what is neither; for a file, what is wrong with it, by field.
pub fn load_recipe(name_or_file: &str) -> Result<Recipe, QuantizeError> {
    let path = Path::new(name_or_file);
    match Recipe::named(name_or_file) {
        Err(_) if path.is_file() => {}
        built_in => return built_in,
    }
    let wrong = |message: String| QuantizeError::Recipe { field: path.display().to_string(), message };
    let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("cannot be read: {e}")))?;
    let mut recipe = parse(&text).map_err(wrong)?;
    if recipe.name == UNNAMED {
        recipe.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    }
    recipe.check()?;
    Ok(recipe)
}

/// What no recipe is called.
const UNNAMED: &str = "";

fn parse(text: &str) -> Result<Recipe, String> {
    let at = |e: toml::de::Error| {
        let line =
            e.span().and_then(|s| text.get(..s.start)).map_or(1, |before| before.matches('\n').count() + 1);
        format!("line {line}: {}", e.message())
    };
    let mut recipe: Recipe = toml::from_str(text).map_err(at)?;
    let table = text.parse::<toml::Table>().map_err(at)?;
    let says = |field: &str| table.contains_key(field);
    if !says("name") {
        recipe.name = UNNAMED.into();
    }
    if recipe.method != Method::Fpq {
        // Rounding to nearest needs no calibration text, as they do.
        recipe.correct &= says("correct");
        recipe.feedback &= says("feedback");
    }
    Ok(recipe)
}

/// The recipe as a TOML file, every field written out.
///
/// # Errors
/// [`QuantizeError::Recipe`] if a field cannot be written.
pub fn recipe_toml(recipe: &Recipe) -> Result<String, QuantizeError> {
    toml::to_string(recipe)
        .map_err(|e| QuantizeError::Recipe { field: recipe.name.clone(), message: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Search;

    #[test]
    fn a_written_recipe_reads_back() {
        for name in Recipe::names() {
            let recipe = Recipe::named(&name).unwrap();
            assert_eq!(parse(&recipe_toml(&recipe).unwrap()).unwrap(), recipe);
        }
    }

    #[test]
    fn a_misspelt_field_is_named_with_its_line() {
        let error = parse("weight_bits = 4\nwieght_bits = 4\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("wieght_bits"), "{error}");
    }

    #[test]
    fn correction_and_feedback_are_on_where_a_method_has_them() {
        let parsed =
            |method: &str| parse(&format!("method = \"{method}\"\nweight_scheme = \"int4/channel\"\n"));
        let uses = |method: &str| parsed(method).unwrap().uses_factor();
        assert_eq!(
            (uses("fpq"), uses("minmax-int"), uses("minmax-fp"), uses("scheme")),
            (true, false, false, false)
        );
        let wanted = parse("name = \"x\"\nmethod = \"minmax-int\"\nfeedback = true\n").unwrap();
        assert!(wanted.check().unwrap_err().to_string().contains("feedback"));
    }

    #[test]
    fn products_over_the_tokens_do_not_score_what_feedback_rounds() {
        let direct = |name: &str| Recipe { search: Search::Direct, ..Recipe::named(name).unwrap() };
        direct("fpq-published-w4a4").check().unwrap();
        let refused = direct("fpq-w4a4").check().unwrap_err().to_string();
        assert!(refused.contains("search") && refused.contains("feedback = false"), "{refused}");
    }

    #[test]
    fn a_file_without_a_name_is_called_after_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        std::fs::write(&path, "rounds = 2\n").unwrap();
        let recipe = load_recipe(path.to_str().unwrap()).unwrap();
        assert_eq!(recipe, Recipe { name: "mine".into(), rounds: 2, ..Recipe::default() });
    }
}
