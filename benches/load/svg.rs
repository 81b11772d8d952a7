//! Line charts as SVG: axes with units, linear or logarithmic, and a legend. It supports only what
//! `plot.rs` needs. The colours have a medium lightness and the background is transparent, so that
//! a chart is readable on light and dark pages.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 330.0;
/// The plotting area within a chart, in pixels; the legend is to its right.
const LEFT: f64 = 74.0;
const RIGHT: f64 = 590.0;
const TOP: f64 = 38.0;
const BOTTOM: f64 = 272.0;

const INK: &str = "#808080";
const COLOURS: [&str; 9] =
    ["#3b8bd8", "#e0821e", "#2a9d6e", "#d1495b", "#9b6bd1", "#a8763e", "#23a4b5", "#c45fa0", "#8a8f2c"];

/// An axis of a chart.
pub(crate) struct Axis {
    /// The label, with the unit.
    pub(crate) label: &'static str,
    pub(crate) logarithmic: bool,
}

/// A named line through points.
pub(crate) struct Line {
    pub(crate) name: String,
    /// The index of the colour: a name has the same colour in all charts. The first colour is for
    /// the main subject of the charts.
    pub(crate) colour: usize,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A chart.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
}

/// An SVG page with the charts below each other.
pub(crate) fn page(charts: &[Chart]) -> String {
    let height = HEIGHT * charts.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\">\n"
    );
    for (index, chart) in charts.iter().enumerate() {
        writeln!(out, "<g transform=\"translate(0 {})\">", HEIGHT * index as f64).ok();
        chart.draw(&mut out);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

/// An axis with its range, and its place in the picture.
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
    from: f64,
    to: f64,
}

impl Chart {
    fn draw(&self, out: &mut String) {
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let x = Scale::over(all().map(|point| point.0), &self.x, LEFT, RIGHT);
        let y = Scale::over(all().map(|point| point.1), &self.y, BOTTOM, TOP);
        text(out, LEFT, 20.0, "start", 14.0, &self.title);
        for tick in x.ticks() {
            let at = x.place(tick);
            segment(out, (at, BOTTOM), (at, TOP), 0.18);
            text(out, at, BOTTOM + 18.0, "middle", 12.0, &short(tick));
        }
        for tick in y.ticks() {
            let at = y.place(tick);
            segment(out, (LEFT, at), (RIGHT, at), 0.18);
            text(out, LEFT - 8.0, at + 4.0, "end", 12.0, &short(tick));
        }
        segment(out, (LEFT, BOTTOM), (RIGHT, BOTTOM), 1.0);
        segment(out, (LEFT, BOTTOM), (LEFT, TOP), 1.0);
        text(out, f64::midpoint(LEFT, RIGHT), BOTTOM + 40.0, "middle", 12.0, self.x.label);
        let (across, down) = (18.0, f64::midpoint(TOP, BOTTOM));
        writeln!(out, "<g transform=\"rotate(-90 {across} {down})\">").ok();
        text(out, across, down, "middle", 12.0, self.y.label);
        out.push_str("</g>\n");
        for (index, line) in self.lines.iter().enumerate() {
            line.draw(index, &x, &y, out);
        }
    }
}

impl Line {
    fn draw(&self, index: usize, x: &Scale, y: &Scale, out: &mut String) {
        let colour = COLOURS[self.colour % COLOURS.len()];
        let width = if self.colour == 0 { 2.5 } else { 1.5 };
        let places: Vec<(f64, f64)> = self.points.iter().map(|(a, b)| (x.place(*a), y.place(*b))).collect();
        let path: Vec<String> = places.iter().map(|(a, b)| format!("{a:.1},{b:.1}")).collect();
        let path = path.join(" ");
        writeln!(out, "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>").ok();
        // Where points are dense, draw the line without markers.
        for (a, b) in places.iter().filter(|_| places.len() <= 24) {
            writeln!(out, "<circle cx=\"{a:.1}\" cy=\"{b:.1}\" r=\"{}\" fill=\"{colour}\"/>", width + 0.7).ok();
        }
        let (left, down) = (RIGHT + 16.0, TOP + 12.0 + 20.0 * index as f64);
        writeln!(
            out,
            "<line x1=\"{left}\" y1=\"{0}\" x2=\"{1}\" y2=\"{0}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
            down - 4.0,
            left + 18.0
        )
        .ok();
        text(out, left + 24.0, down, "start", 12.0, &self.name);
    }
}

impl Scale {
    fn over(values: impl Iterator<Item = f64>, axis: &Axis, from: f64, to: f64) -> Self {
        let (low, high) = values
            .filter(|value| !axis.logarithmic || *value > 0.0)
            .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        let logarithmic = axis.logarithmic;
        if low > high {
            return Self { low: 1.0, high: 10.0, logarithmic, from, to };
        }
        let (low, high) = if logarithmic {
            (low / 1.15, high * 1.15)
        } else {
            // A linear axis starts at zero, so that differences appear in proportion.
            (low.min(0.0), if high > 0.0 { high * 1.08 } else { 1.0 })
        };
        Self { low, high, logarithmic, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let part = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + part * (self.to - self.from)
    }

    /// Round numbers within the range: about six on a linear axis, one to three per power of ten on
    /// a logarithmic one.
    fn ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            let rough = (self.high - self.low) / 6.0;
            let power = 10_f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| *step >= rough);
            let step = step.unwrap_or(rough);
            let (first, last) = ((self.low / step).ceil() as i64, (self.high / step).floor() as i64);
            return (first..=last).map(|index| index as f64 * step).collect();
        }
        let steps: &[f64] = if self.high / self.low > 300.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let powers = (first..=last).map(|power| 10_f64.powi(power));
        powers
            .flat_map(|power| steps.iter().map(move |step| step * power))
            .filter(|tick| (self.low..=self.high).contains(tick))
            .collect()
    }
}

fn segment(out: &mut String, from: (f64, f64), to: (f64, f64), opacity: f64) {
    let ends = format!("x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"", from.0, from.1, to.0, to.1);
    writeln!(out, "<line {ends} stroke=\"{INK}\" stroke-opacity=\"{opacity}\"/>").ok();
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, size: f64, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{words}</text>").ok();
}

/// Formats the number of a tick: 500, 20 k, 1.5 M.
fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        size if size >= 1e6 => (value / 1e6, " M"),
        size if size >= 1e3 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = format!("{value:.3}");
    format!("{}{unit}", digits.trim_end_matches('0').trim_end_matches('.'))
}
