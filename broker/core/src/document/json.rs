//! JSON text, read into the canonical form and written from it.

use super::form::{ARRAY, FALSE, NULL, OBJECT, STRING, TRUE, close_frame, put_bytes};
use super::value::{Value, ValueBuf, is_number, put_number, put_string};
use crate::limits::{MAX_DOCUMENT_BYTES, MAX_DOCUMENT_DEPTH, MAX_NUMBER_BYTES};

/// Why a text is not a JSON value that can be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadJson {
    /// Not JSON.
    #[error("not JSON: {expected} expected at byte {at}")]
    Syntax {
        /// Where, from 0.
        at: usize,
        /// What would be right there.
        expected: &'static str,
    },
    /// One key twice in an object. Which of the two counts differs between readers of JSON.
    #[error("an object has the key {0:?} twice; give each key once")]
    Duplicate(String),
    /// Nested too deep.
    #[error("nested deeper than {MAX_DOCUMENT_DEPTH} levels")]
    TooDeep,
    /// Too large.
    #[error("larger than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge,
    /// A number too long.
    #[error("a number longer than {MAX_NUMBER_BYTES} characters")]
    LongNumber,
}

/// Reads JSON.
///
/// # Errors
/// When the text is not one JSON value, when an object has a key twice, or when a limit is passed.
pub fn parse(text: &str) -> Result<ValueBuf, BadJson> {
    if text.len() > 2 * MAX_DOCUMENT_BYTES {
        return Err(BadJson::TooLarge);
    }
    let mut parser = Parser {
        text,
        at: 0,
        out: Vec::with_capacity(text.len()),
    };
    parser.value(0)?;
    parser.space();
    if parser.at < text.len() {
        return Err(parser.expected("the end"));
    }
    if parser.out.len() > MAX_DOCUMENT_BYTES {
        return Err(BadJson::TooLarge);
    }
    Ok(ValueBuf::of_checked(parser.out))
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    out: Vec<u8>,
}

/// Where a field lies in what was written.
struct Field {
    key: std::ops::Range<usize>,
    whole: std::ops::Range<usize>,
}

impl<'a> Parser<'a> {
    fn expected(&self, expected: &'static str) -> BadJson {
        BadJson::Syntax {
            at: self.at,
            expected,
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Passes over a byte if it is next.
    fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn value(&mut self, depth: usize) -> Result<(), BadJson> {
        if depth >= MAX_DOCUMENT_DEPTH {
            return Err(BadJson::TooDeep);
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => {
                let text = self.string()?;
                put_string(&mut self.out, &text);
                Ok(())
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Result<(), BadJson> {
        let words = [("null", NULL), ("false", FALSE), ("true", TRUE)];
        let rest = &self.text[self.at..];
        let found = words.iter().find(|(word, _)| rest.starts_with(word));
        let (word, kind) = found.ok_or_else(|| self.expected("a value"))?;
        self.at += word.len();
        self.out.push(*kind);
        Ok(())
    }

    fn number(&mut self) -> Result<(), BadJson> {
        let rest = &self.text[self.at..];
        let inside = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
        let end = rest.find(|c| !inside(c)).unwrap_or(rest.len());
        let number = &rest[..end];
        if !is_number(number) {
            return Err(self.expected("a number"));
        }
        if number.len() > MAX_NUMBER_BYTES {
            return Err(BadJson::LongNumber);
        }
        put_number(&mut self.out, number);
        self.at += end;
        Ok(())
    }

    fn array(&mut self, depth: usize) -> Result<(), BadJson> {
        self.at += 1;
        self.out.push(ARRAY);
        let frame = self.out.len();
        self.out.push(0);
        self.space();
        if !self.take(b']') {
            loop {
                self.value(depth + 1)?;
                self.space();
                if self.take(b']') {
                    break;
                }
                if !self.take(b',') {
                    return Err(self.expected("a comma or the end of the array"));
                }
            }
        }
        close_frame(&mut self.out, frame);
        Ok(())
    }

    fn object(&mut self, depth: usize) -> Result<(), BadJson> {
        self.at += 1;
        self.out.push(OBJECT);
        let frame = self.out.len();
        self.out.push(0);
        let mut fields = Vec::new();
        self.space();
        if !self.take(b'}') {
            loop {
                fields.push(self.field(depth)?);
                self.space();
                if self.take(b'}') {
                    break;
                }
                if !self.take(b',') {
                    return Err(self.expected("a comma or the end of the object"));
                }
            }
        }
        self.sort(frame + 1, &mut fields)?;
        close_frame(&mut self.out, frame);
        Ok(())
    }

    fn field(&mut self, depth: usize) -> Result<Field, BadJson> {
        self.space();
        if self.peek() != Some(b'"') {
            return Err(self.expected("a key"));
        }
        let from = self.out.len();
        let key = self.string()?;
        put_bytes(&mut self.out, key.as_bytes());
        let end = self.out.len();
        self.space();
        if !self.take(b':') {
            return Err(self.expected("a colon"));
        }
        self.value(depth + 1)?;
        Ok(Field {
            key: end - key.len()..end,
            whole: from..self.out.len(),
        })
    }

    /// Brings the fields that were written from `from` on into the order of their keys.
    fn sort(&mut self, from: usize, fields: &mut [Field]) -> Result<(), BadJson> {
        let key = |field: &Field| &self.out[field.key.clone()];
        if fields.is_sorted_by(|a, b| key(a) < key(b)) {
            return Ok(());
        }
        fields.sort_by(|a, b| key(a).cmp(key(b)));
        if let Some(pair) = fields
            .windows(2)
            .find(|pair| key(&pair[0]) == key(&pair[1]))
        {
            let text = String::from_utf8_lossy(key(&pair[0]));
            return Err(BadJson::Duplicate(text.chars().take(80).collect()));
        }
        let sorted: Vec<u8> = fields
            .iter()
            .flat_map(|field| &self.out[field.whole.clone()])
            .copied()
            .collect();
        self.out[from..].copy_from_slice(&sorted);
        Ok(())
    }

    fn string(&mut self) -> Result<std::borrow::Cow<'a, str>, BadJson> {
        self.at += 1;
        let from = self.at;
        let mut text = String::new();
        let mut plain = from;
        loop {
            match self.peek() {
                Some(b'"') => {
                    let rest = &self.text[plain..self.at];
                    self.at += 1;
                    if plain == from {
                        return Ok(rest.into());
                    }
                    return Ok((text + rest).into());
                }
                Some(b'\\') => {
                    text.push_str(&self.text[plain..self.at]);
                    self.at += 1;
                    text.push(self.escaped()?);
                    plain = self.at;
                }
                Some(0x20..) => self.at += 1,
                Some(_) => return Err(self.expected("an escaped control character")),
                None => return Err(self.expected("the end of the string")),
            }
        }
    }

    fn escaped(&mut self) -> Result<char, BadJson> {
        let escape = self.peek();
        self.at += 1;
        match escape {
            Some(c @ (b'"' | b'\\' | b'/')) => Ok(char::from(c)),
            Some(b'b') => Ok('\u{8}'),
            Some(b'f') => Ok('\u{c}'),
            Some(b'n') => Ok('\n'),
            Some(b'r') => Ok('\r'),
            Some(b't') => Ok('\t'),
            Some(b'u') => self.unicode(),
            _ => {
                self.at -= 1;
                Err(self.expected("an escape"))
            }
        }
    }

    fn unicode(&mut self) -> Result<char, BadJson> {
        let first = self.four_digits()?;
        let code = match first {
            0xd800..0xdc00 => {
                let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
                if !rest.starts_with(b"\\u") {
                    return Err(self.expected("the other half of a surrogate pair"));
                }
                self.at += 2;
                let second = self.four_digits()?;
                if !(0xdc00..0xe000).contains(&second) {
                    return Err(self.expected("the other half of a surrogate pair before this"));
                }
                0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            code => code,
        };
        char::from_u32(code).ok_or_else(|| self.expected("a character that exists before this"))
    }

    fn four_digits(&mut self) -> Result<u32, BadJson> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let digits = digits.filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        let text = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let code = text.and_then(|text| u32::from_str_radix(text, 16).ok());
        let code = code.ok_or_else(|| self.expected("four hexadecimal digits"))?;
        self.at += 4;
        Ok(code)
    }
}

impl std::fmt::Display for Value<'_> {
    /// JSON without spaces.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind() {
            NULL => f.write_str("null"),
            FALSE => f.write_str("false"),
            TRUE => f.write_str("true"),
            STRING => write_text(f, self.as_text().unwrap_or_default()),
            ARRAY => {
                f.write_str("[")?;
                for (n, element) in self.elements().enumerate() {
                    f.write_str(if n > 0 { "," } else { "" })?;
                    element.fmt(f)?;
                }
                f.write_str("]")
            }
            OBJECT => {
                f.write_str("{")?;
                for (n, (key, value)) in self.fields().enumerate() {
                    f.write_str(if n > 0 { "," } else { "" })?;
                    write_text(f, key)?;
                    f.write_str(":")?;
                    value.fmt(f)?;
                }
                f.write_str("}")
            }
            _ => f.write_str(&self.as_number().unwrap_or_default()),
        }
    }
}

impl std::fmt::Display for ValueBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.value().fmt(f)
    }
}

fn write_text(f: &mut std::fmt::Formatter<'_>, text: &str) -> std::fmt::Result {
    f.write_str("\"")?;
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| matches!(c, '"' | '\\') || c < ' ') {
        f.write_str(&rest[..at])?;
        match rest.as_bytes()[at] {
            b'\n' => f.write_str("\\n")?,
            b'\t' => f.write_str("\\t")?,
            b'\r' => f.write_str("\\r")?,
            c @ (b'"' | b'\\') => write!(f, "\\{}", char::from(c))?,
            c => write!(f, "\\u{c:04x}")?,
        }
        rest = &rest[at + 1..];
    }
    f.write_str(rest)?;
    f.write_str("\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_kept_as_written_and_keys_are_put_in_order() {
        let check = |text: &str, expected: &str| {
            let value = parse(text).unwrap();
            assert_eq!(value.to_string(), expected);
            assert_eq!(Value::decode(value.value().bytes()), Ok(value.value()));
        };
        check(
            r#" {"b": 1.0, "a": [1, -0, 1e2, 18446744073709551616]} "#,
            r#"{"a":[1,-0,1e2,18446744073709551616],"b":1.0}"#,
        );
        check(r#""\u00e9\ud83d\ude00\n\u0000\/""#, "\"é😀\\n\\u0000/\"");
        check(r#"[null,true,false,{},[]]"#, r#"[null,true,false,{},[]]"#);
    }

    #[test]
    fn what_is_not_one_clear_value_is_refused() {
        for text in [
            "",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "01",
            "1.",
            ".5",
            "+1",
            "nul",
            "\"\t\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\\x\"",
            "1 2",
            "{a:1}",
            "\"\\u12",
            "NaN",
            "-",
        ] {
            assert!(matches!(parse(text), Err(BadJson::Syntax { .. })), "{text}");
        }
        assert_eq!(
            parse(r#"{"a":1,"b":2,"\u0061":3}"#),
            Err(BadJson::Duplicate("a".into()))
        );
        let deep = |levels: usize| parse(&("[".repeat(levels) + &"]".repeat(levels)));
        assert!(deep(MAX_DOCUMENT_DEPTH).is_ok());
        assert_eq!(deep(MAX_DOCUMENT_DEPTH + 1), Err(BadJson::TooDeep));
        assert_eq!(parse(&"1".repeat(200)), Err(BadJson::LongNumber));
    }

    proptest! {
        #[test]
        fn text_is_read_as_serde_reads_it(text in "[\\[\\]{}\",:0-9a-c\\\\un. -]{0,24}") {
            let ours = parse(&text);
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            match (ours, theirs) {
                (Ok(ours), Ok(theirs)) => {
                    let again: serde_json::Value = serde_json::from_str(&ours.to_string()).unwrap();
                    prop_assert_eq!(again, theirs);
                }
                (Err(BadJson::Duplicate(_)), Ok(_)) | (Err(_), Err(_)) => {}
                (ours, theirs) => prop_assert!(false, "{:?} {:?}", ours, theirs),
            }
        }

        #[test]
        fn bytes_that_read_are_a_value_that_reads_back(bytes in prop::collection::vec(0u8..10, 0..24)) {
            if let Ok(value) = Value::decode(&bytes) {
                let again = parse(&value.to_string()).unwrap();
                prop_assert_eq!(again.value(), value);
            }
        }
    }
}
