//! A small writer of SVG: shapes with classes, whose colours the page's style sheet gives, so that one drawing serves light,
//! dark and paper. Widths are those of a phone; wide screens put drawings beside each other.

use crate::html::escape;
use std::fmt::Write;

/// Width of every drawing in its own units, about a pixel of a phone.
pub(crate) const WIDTH: f64 = 360.0;

/// A drawing under construction.
pub(crate) struct Svg {
    id: String,
    title: String,
    description: String,
    height: f64,
    body: String,
}

/// Where a text stands relative to its point.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    /// An empty drawing. Its title says what it is, its description what it shows; `id` is unique on the page.
    pub(crate) fn new(
        id: &str,
        title: impl Into<String>,
        description: impl Into<String>,
        height: f64,
    ) -> Self {
        Self {
            id: id.into(),
            title: title.into(),
            description: description.into(),
            height,
            body: String::new(),
        }
    }

    pub(crate) fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, class: &str) {
        let _ = write!(
            self.body,
            "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
            n(x),
            n(y),
            n(width.max(0.0)),
            n(height.max(0.0))
        );
    }

    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let _ = write!(
            self.body,
            "<path class=\"{class}\" d=\"M{} {}L{} {}\"/>",
            n(from.0),
            n(from.1),
            n(to.0),
            n(to.1)
        );
    }

    pub(crate) fn path(&mut self, d: &str, class: &str) {
        let _ = write!(self.body, "<path class=\"{class}\" d=\"{d}\"/>");
    }

    /// Many round dots as one path: strokes of no length with round ends.
    pub(crate) fn dots(&mut self, points: impl IntoIterator<Item = (f64, f64)>, class: &str) {
        let d: String = points.into_iter().map(|(x, y)| format!("M{} {}h0", n(x), n(y))).collect();
        if !d.is_empty() {
            self.path(&d, class);
        }
    }

    pub(crate) fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        let _ =
            write!(self.body, "<text{class} x=\"{}\" y=\"{}\"{anchor}>{}</text>", n(x), n(y), escape(text));
    }

    /// The element.
    pub(crate) fn finish(self) -> String {
        let Self { id, title, description, height, body } = self;
        format!(
            "<svg role=\"img\" aria-labelledby=\"{id}-t {id}-d\" viewBox=\"0 0 {} {}\"><title id=\"{id}-t\">{}</title>\
             <desc id=\"{id}-d\">{}</desc>{body}</svg>",
            n(WIDTH),
            n(height),
            escape(&title),
            escape(&description)
        )
    }
}

/// A coordinate, to a tenth.
pub(crate) fn n(value: f64) -> String {
    let text = format!("{value:.1}");
    let short = text.strip_suffix(".0").unwrap_or(&text);
    if short == "-0" { "0".into() } else { short.into() }
}

/// Maps values to coordinates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    log: bool,
    values: (f64, f64),
    at: (f64, f64),
}

impl Axis {
    /// From `values` to the coordinates `at`.
    pub(crate) fn linear(values: (f64, f64), at: (f64, f64)) -> Self {
        let high = if values.1 > values.0 { values.1 } else { values.0 + 1.0 };
        Self { log: false, values: (values.0, high), at }
    }

    /// The same by logarithms, of values above zero.
    pub(crate) fn log(values: (f64, f64), at: (f64, f64)) -> Self {
        let low = values.0.max(f64::MIN_POSITIVE);
        let high = if values.1 > low { values.1 } else { low * 2.0 };
        Self { log: true, values: (low, high), at }
    }

    /// The coordinate of a value; beyond the ends it is that of the end.
    pub(crate) fn to(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        let share = match self.log {
            true => (value.max(low) / low).ln() / (high / low).ln(),
            false => (value - low) / (high - low),
        };
        self.at.0 + share.clamp(0.0, 1.0) * (self.at.1 - self.at.0)
    }

    /// Round values on it, at most about `most`.
    pub(crate) fn ticks(&self, most: usize) -> Vec<f64> {
        let (low, high) = self.values;
        if !self.log {
            let step = nice((high - low) / most as f64);
            let first = (low / step - 1e-9).ceil() as i64;
            let last = (high / step + 1e-9).floor() as i64;
            return (first..=last).map(|i| i as f64 * step).collect();
        }
        let exponents = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
        let ticks = |digits: &[f64], every: i32| -> Vec<f64> {
            exponents
                .clone()
                .filter(|e| e.rem_euclid(every) == 0)
                .flat_map(|e| digits.iter().map(move |d| d * 10f64.powi(e)))
                .filter(|v| (low * 0.999..=high * 1.001).contains(v))
                .collect()
        };
        let choices =
            [ticks(&[1.0, 2.0, 3.0, 5.0, 7.0], 1), ticks(&[1.0, 2.0, 5.0], 1), ticks(&[1.0, 3.0], 1)];
        let coarse = (1..).map(|every| ticks(&[1.0], every));
        choices.into_iter().chain(coarse).find(|t| t.len() <= most).unwrap_or_default()
    }
}

/// The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `step`.
fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].map(|d| d * power).into_iter().find(|s| *s >= step * 0.999).unwrap_or(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(Axis::linear((0.0, 97.0), (0.0, 1.0)).ticks(5), [0.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!(Axis::linear((3.0, 3.0), (0.0, 1.0)).ticks(3).len(), 3);
        assert_eq!(Axis::log((0.9, 120.0), (0.0, 1.0)).ticks(4), [1.0, 10.0, 100.0]);
        assert_eq!(Axis::log((20.0, 64.0), (0.0, 1.0)).ticks(5), [20.0, 30.0, 50.0]);
        let wide = Axis::log((1e-9, 1e9), (0.0, 1.0)).ticks(4);
        assert!(!wide.is_empty() && wide.len() <= 4, "{wide:?}");
    }

    #[test]
    fn values_beyond_an_axis_stay_at_its_end() {
        let axis = Axis::log((1.0, 100.0), (0.0, 200.0));
        assert_eq!([0.0, 1.0, 10.0, 1e6].map(|v| axis.to(v).round()), [0.0, 0.0, 100.0, 200.0]);
        let down = Axis::linear((0.0, 4.0), (100.0, 0.0));
        assert_eq!([0.0, 1.0, 4.0].map(|v| down.to(v)), [100.0, 75.0, 0.0]);
    }

    #[test]
    fn what_comes_from_files_is_escaped() {
        let mut svg = Svg::new("a", "<b>", "d", 10.0);
        svg.text(1.0, 2.04, Anchor::End, "", "x < y & \"z\"");
        let svg = svg.finish();
        assert!(svg.contains("<title id=\"a-t\">&lt;b&gt;</title>"), "{svg}");
        assert!(
            svg.contains("<text x=\"1\" y=\"2\" text-anchor=\"end\">x &lt; y &amp; &quot;z&quot;</text>"),
            "{svg}"
        );
    }
}
