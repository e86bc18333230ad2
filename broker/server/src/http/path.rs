//! The variable segments of a path, percent-decoded.
//!
//! axum would decode them too, but only into UTF-8, and a key is any bytes. A segment is a name to
//! look up and never a part of a file's path.

use std::borrow::Cow;

use http::Uri;
use percent_encoding::percent_decode_str;

/// `{stream}` of `/v1/streams/{stream}…` and `/v1/tables/{stream}…`.
pub(super) fn stream(uri: &Uri) -> Cow<'_, str> {
    percent_decode_str(segment(uri, 3)).decode_utf8_lossy()
}

/// `{member}` of `/v1/regions/{member}…`.
pub(super) fn member(uri: &Uri) -> Cow<'_, str> {
    percent_decode_str(segment(uri, 3)).decode_utf8_lossy()
}

/// `{key}` of `/v1/tables/{stream}/rows/{key}`.
pub(super) fn key(uri: &Uri) -> Cow<'_, [u8]> {
    percent_decode_str(segment(uri, 5)).into()
}

/// Segment 0 is what stands before the first slash: nothing.
fn segment(uri: &Uri, index: usize) -> &str {
    uri.path().split('/').nth(index).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_any_bytes_and_slashes_are_encoded() {
        for (path, expected) in [
            ("/v1/tables/s/rows/a", &b"a"[..]),
            ("/v1/tables/s/rows/a%2Fb", b"a/b"),
            ("/v1/tables/s/rows/..%2F..%2Fetc", b"../../etc"),
            ("/v1/tables/s/rows/%ff%00", b"\xff\x00"),
            ("/v1/tables/s/rows/50%", b"50%"),
            ("/v1/tables/s/rows/a+b", b"a+b"),
        ] {
            let uri: Uri = path.parse().unwrap();
            assert_eq!(&*key(&uri), expected, "{path}");
            assert_eq!(stream(&uri), "s");
        }
    }
}
