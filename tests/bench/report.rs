//! The table: of all rows and subjects, with the ratio and the mark where there are two.

use std::fmt::Write as _;

use crate::measure::{Mark, Row, Table, Value};

/// Columns padded with spaces.
pub(crate) fn text(table: &Table) -> String {
    let lines = lines(table);
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

pub(crate) fn markdown(table: &Table) -> String {
    let mut text = String::new();
    for (number, line) in lines(table).iter().enumerate() {
        writeln!(text, "| {} |", line.join(" | ")).expect("text takes all text");
        if number == 0 {
            let rules = line.iter().enumerate().map(|(at, _)| if at == 0 { "---" } else { "---:" });
            let rules = rules.collect::<Vec<_>>().join(" | ");
            writeln!(text, "| {rules} |").expect("text takes all text");
        }
    }
    text
}

fn lines(table: &Table) -> Vec<Vec<String>> {
    let compared = table.subjects.len() > 1;
    let mut head = vec!["what (p50; p90 in brackets)".to_owned()];
    head.extend(table.subjects.iter().cloned());
    head.extend(compared.then(|| "ratio".to_owned()));
    head.push("mark".to_owned());
    let rows = table.rows.iter().map(|row| line(row, compared));
    [head].into_iter().chain(rows).collect()
}

fn line(row: &Row, compared: bool) -> Vec<String> {
    let mut cells = vec![format!("{}, {}", row.what, row.unit)];
    cells.extend(row.values.iter().map(|value| value.map_or_else(|| "-".to_owned(), cell)));
    if compared {
        cells.push(row.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}")));
    }
    cells.push(mark(row));
    cells
}

fn cell(value: Value) -> String {
    let typical = number(value.typical);
    value.p90.map_or_else(|| typical.clone(), |p90| format!("{typical} ({})", number(p90)))
}

/// Three digits that say something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn mark(row: &Row) -> String {
    let Some(mark) = row.mark else { return String::new() };
    let wanted = match mark {
        Mark::AtMost(limit) => format!("<= {limit} {}", row.unit),
        Mark::RatioAtMost(limit) => format!("<= {limit}"),
        Mark::RatioAtLeast(limit) => format!(">= {limit}"),
    };
    match row.met() {
        Some(true) => format!("{wanted} met"),
        Some(false) => format!("{wanted} NOT MET"),
        None => wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::{markdown, number, text};
    use crate::measure::{Mark, Row, Table, Value};

    fn table() -> Table {
        let value = |typical| Some(Value { typical, p90: None });
        let row =
            |what: &str, values, mark| Row { what: what.to_owned(), unit: "ms", values, mark };
        Table {
            subjects: vec!["a 1".to_owned(), "b 2".to_owned()],
            rows: vec![
                row("start", vec![value(1.0), value(4.0)], Some(Mark::RatioAtMost(0.5))),
                row("stop", vec![None, Some(Value { typical: 12.0, p90: Some(150.0) })], None),
            ],
        }
    }

    #[test]
    fn text_has_a_column_for_each_subject_and_says_which_marks_are_met() {
        assert_eq!(
            text(&table()),
            "what (p50; p90 in brackets)   a 1         b 2  ratio        mark\n\
             start, ms                    1.00        4.00   0.25  <= 0.5 met\n\
             stop, ms                        -  12.0 (150)\n"
        );
    }

    #[test]
    fn markdown_has_the_same_cells() {
        assert_eq!(
            markdown(&table()),
            "| what (p50; p90 in brackets) | a 1 | b 2 | ratio | mark |\n\
             | --- | ---: | ---: | ---: | ---: |\n\
             | start, ms | 1.00 | 4.00 | 0.25 | <= 0.5 met |\n\
             | stop, ms | - | 12.0 (150) |  |  |\n"
        );
    }

    #[test]
    fn numbers_keep_three_digits() {
        for (value, text) in
            [(0.0, "0"), (0.123, "0.12"), (9.876, "9.88"), (45.67, "45.7"), (664_445.0, "664445")]
        {
            assert_eq!(number(value), text);
        }
    }
}
