//! What records say, so that each is known by sight: who wrote it, and as which of its records.

/// Who wrote a record, and as which of its records, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Mark {
    pub(crate) writer: u32,
    pub(crate) number: u32,
}

/// One record in so many is large, so that segments end now and then.
const LARGE_EVERY: u32 = 97;
const LARGE: usize = 48 * 1024;

impl Mark {
    /// The value that carries it: a JSON text, of a length that depends on it alone.
    pub(crate) fn value(self) -> String {
        let padding = match self.number % LARGE_EVERY {
            0 => LARGE,
            rest => usize::try_from(rest).unwrap(),
        };
        format!(
            "\"{}:{}:{}\"",
            self.writer,
            self.number,
            "x".repeat(padding)
        )
    }

    /// Reads a value, and checks that all of it is there.
    pub(crate) fn of(value: &[u8]) -> Self {
        let text = std::str::from_utf8(value).unwrap();
        let mut fields = text.trim_matches('"').split(':');
        let mut number = || fields.next().unwrap().parse().unwrap();
        let mark = Self {
            writer: number(),
            number: number(),
        };
        assert!(text == mark.value(), "{mark:?} came damaged");
        mark
    }
}
