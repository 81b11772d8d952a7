//! Results: a table on the terminal, JSON lines in a file, and medians and ratios over several
//! rounds.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::Outcome;

/// The result of one case for one server.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) scenario: &'static str,
    pub(crate) case: String,
    pub(crate) server: String,
    pub(crate) figures: Vec<(&'static str, f64)>,
    /// The parameters of the case, for plots.
    pub(crate) at: Vec<(&'static str, f64)>,
    /// Samples over time: the names of the columns, and a line per sample.
    pub(crate) series: (Vec<&'static str>, Vec<Vec<f64>>),
}

/// Names of figures that must be 0.
pub(crate) const FAULTS: [&str; 4] = ["lost", "doubled", "reordered", "changed"];

/// Prints rows as they arrive, and keeps them.
pub(crate) struct Report {
    rows: Vec<Row>,
    json: Option<PathBuf>,
    head: Vec<&'static str>,
}

impl Report {
    pub(crate) fn new(json: Option<PathBuf>) -> Self {
        Self { rows: Vec::new(), json, head: Vec::new() }
    }

    /// Prints a row. Prints the head of the table again if the columns change.
    pub(crate) fn add(&mut self, row: Row) -> Outcome<()> {
        let names: Vec<_> = row.figures.iter().map(|(name, _)| *name).collect();
        if names != self.head {
            let titles: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            self.print(&format!("\n{}", line(row.scenario, "server", &titles, &names)))?;
            self.head.clone_from(&names);
        }
        let values: Vec<_> = row.figures.iter().map(|(_, value)| short(*value)).collect();
        self.print(&line(&row.case, &row.server, &values, &names))?;
        self.keep(&row.to_json(1))?;
        self.rows.push(row);
        Ok(())
    }

    /// Whether any run lost, duplicated, reordered or changed a message.
    pub(crate) fn faults(&self) -> bool {
        self.rows.iter().flat_map(|row| &row.figures).any(|(name, value)| FAULTS.contains(name) && *value > 0.0)
    }

    /// Prints the medians of all rounds, and the ratio of each figure to those of the bare kernel
    /// and the naive program.
    pub(crate) fn compare(&self) -> Outcome<()> {
        let medians = self.medians();
        let mut cases: Vec<(&str, &str)> = Vec::new();
        for (row, _) in &medians {
            if !cases.contains(&(row.scenario, &row.case)) {
                cases.push((row.scenario, &row.case));
            }
        }
        for (scenario, case) in cases {
            let rows: Vec<_> = medians.iter().filter(|(row, _)| row.scenario == scenario && row.case == case).collect();
            let references: Vec<&Row> = rows.iter().map(|(row, _)| row).filter(|row| row.is_reference()).collect();
            let names: Vec<_> = references.iter().map(|row| format!("/{}", row.server)).collect();
            self.print(&format!("\n{scenario}, {case}: medians of {} rounds", rows[0].1))?;
            for (row, rounds) in &rows {
                self.print(&format!("  {:<30}{}", row.server, right(&names)))?;
                for (name, value) in row.figures.iter().filter(|(name, _)| !FAULTS.contains(name)) {
                    let ratios: Vec<_> =
                        references.iter().map(|reference| ratio(*value, reference.figure(name))).collect();
                    self.print(&format!("    {name:<18}{:>10}{}", short(*value), right(&ratios)))?;
                }
                self.keep(&row.to_json(*rounds))?;
            }
        }
        Ok(())
    }

    /// The median of each case and server, with its number of rounds.
    fn medians(&self) -> Vec<(Row, usize)> {
        let mut medians: Vec<(Row, usize)> = Vec::new();
        for row in &self.rows {
            if !medians.iter().any(|(median, _)| median.is_of(row)) {
                let rounds: Vec<&Row> = self.rows.iter().filter(|other| other.is_of(row)).collect();
                medians.push((median(&rounds), rounds.len()));
            }
        }
        medians
    }

    fn print(&self, text: &str) -> Outcome<()> {
        writeln!(io::stdout().lock(), "{text}")?;
        Ok(())
    }

    /// Writes a line of JSON, if the user asked for it.
    fn keep(&self, value: &Value) -> Outcome<()> {
        let Some(path) = &self.json else {
            return Ok(());
        };
        if path.as_os_str() == "-" {
            return self.print(&value.to_string());
        }
        writeln!(OpenOptions::new().create(true).append(true).open(path)?, "{value}")?;
        Ok(())
    }
}

impl Row {
    /// Adds the parameters of the case.
    pub(crate) fn at(mut self, numbers: &[(&'static str, f64)]) -> Row {
        self.at.extend_from_slice(numbers);
        self
    }

    fn to_json(&self, rounds: usize) -> Value {
        let object = |pairs: &[(&str, f64)]| -> Map<String, Value> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect()
        };
        let (figures, at) = (object(&self.figures), object(&self.at));
        let mut row = json!({ "scenario": self.scenario, "case": self.case, "server": self.server, "rounds": rounds, "at": at, "figures": figures });
        if !self.series.1.is_empty() {
            row["series"] = json!({ "columns": self.series.0, "samples": self.series.1 });
        }
        row
    }

    fn figure(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
    }

    fn is_reference(&self) -> bool {
        self.server.starts_with("bare") || self.server == "naive"
    }

    /// Whether this is another round of the same case.
    fn is_of(&self, other: &Row) -> bool {
        (self.scenario, &self.case, &self.server) == (other.scenario, &other.case, &other.server)
    }
}

fn median(rounds: &[&Row]) -> Row {
    let mut result = rounds[0].clone();
    result.series.1.clear();
    for (name, value) in &mut result.figures {
        let mut values: Vec<f64> = rounds.iter().filter_map(|row| row.figure(name)).collect();
        values.sort_by(f64::total_cmp);
        // A fault in any round counts, so take the largest value.
        *value = if FAULTS.contains(name) { values[values.len() - 1] } else { middle(&values) };
    }
    result
}

fn middle(sorted: &[f64]) -> f64 {
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

fn ratio(value: f64, reference: Option<f64>) -> String {
    match reference {
        Some(reference) if reference > 0.0 => format!("{:.2}", value / reference),
        _ => "–".to_owned(),
    }
}

fn right(texts: &[String]) -> String {
    texts.iter().map(|text| format!("{text:>12}")).collect()
}

fn line(case: &str, server: &str, values: &[String], names: &[&str]) -> String {
    let mut text = format!("{case:<34} {server:<12}");
    for (value, name) in values.iter().zip(names) {
        text.push_str(&format!(" {value:>width$}", width = name.chars().count().max(9)));
    }
    text
}

/// Formats a number with three or four significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.2} M", value / 1e6),
        size if size >= 1e4 => format!("{:.1} k", value / 1e3),
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
