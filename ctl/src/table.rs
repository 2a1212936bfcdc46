//! Tables for people: aligned columns, no frames, numbers to the right.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Where a column's text stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table of these columns and rows, one line a row.
pub fn render(columns: &[(&str, Align)], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|(title, _)| *title));
    table.add_rows(rows);
    for (index, (_, align)) in columns.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(match align {
                Align::Left => CellAlignment::Left,
                Align::Right => CellAlignment::Right,
            });
            column.set_padding((0, 2));
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Names and values, one pair a line.
pub fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    pairs
        .iter()
        .map(|(name, value)| format!("{:<width$}{value}\n", format!("{name}:")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["prod".to_owned(), "5".to_owned()],
            vec!["a".to_owned(), "1000".to_owned()],
        ];
        let text = render(&[("NAME", Align::Left), ("SIZE", Align::Right)], rows);
        assert_eq!(text, "NAME  SIZE\nprod     5\na     1000\n");
    }

    #[test]
    fn pairs_line_up() {
        assert_eq!(
            pairs(&[("a", "1".into()), ("long", "2".into())]),
            "a:    1\nlong: 2\n"
        );
    }
}
