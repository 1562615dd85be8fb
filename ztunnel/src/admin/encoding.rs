// SPDX-License-Identifier: Apache-2.0
//! How an answer is compressed: what the client asks for, of what we can. Source: RFC 9110, section 12.5.3.

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 1950.
    Deflate,
}

impl Encoding {
    /// The coding that the values of `Accept-Encoding` prefer; of equals the first of gzip and deflate. What cannot be
    /// understood asks for nothing.
    pub fn choose<'a>(offered: impl Iterator<Item = &'a str>) -> Self {
        // In thousandths, 0: not acceptable.
        let (mut gzip, mut deflate, mut any) = (None, None, None);
        for part in offered.flat_map(|value| value.split(',')) {
            let (name, parameters) = part.split_once(';').unwrap_or((part, ""));
            let quality = match parameters.trim() {
                "" => Some(1000),
                parameter => parameter.strip_prefix("q=").and_then(thousandths),
            };
            let slot = match name.trim().to_ascii_lowercase().as_str() {
                "gzip" | "x-gzip" => &mut gzip,
                "deflate" => &mut deflate,
                "*" => &mut any,
                _ => continue,
            };
            *slot = quality.or(*slot);
        }
        let gzip = gzip.or(any).unwrap_or(0);
        let deflate = deflate.or(any).unwrap_or(0);
        match (gzip, deflate) {
            (0, 0) => Self::Identity,
            _ if gzip >= deflate => Self::Gzip,
            _ => Self::Deflate,
        }
    }

    /// As `Content-Encoding` says it.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Deflate => Some("deflate"),
        }
    }
}

/// `0.5` as 500.
fn thousandths(quality: &str) -> Option<u32> {
    let (whole, fraction) = quality.split_once('.').unwrap_or((quality, ""));
    let digits = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return None;
    }
    let fraction: u32 = format!("{fraction:0<3}").parse().ok()?;
    Some((whole.parse::<u32>().ok()?.min(1) * 1000 + fraction).min(1000))
}

#[cfg(test)]
mod tests {
    use super::Encoding::{self, Deflate, Gzip, Identity};

    #[test]
    fn a_client_gets_what_it_prefers_of_what_we_can() {
        for (offered, expected) in [
            ("", Identity),
            ("gzip", Gzip),
            ("GZIP", Gzip),
            ("br, zstd", Identity),
            ("br, gzip;q=0.8, *;q=0.1", Gzip),
            ("deflate, gzip;q=0.5", Deflate),
            ("gzip;q=0", Identity),
            ("gzip;q=0, *", Deflate),
            ("*", Gzip),
            ("gzip;q=much", Identity),
            ("identity;q=1, *;q=0", Identity),
            (";;,,=", Identity),
        ] {
            assert_eq!(Encoding::choose([offered].into_iter()), expected, "{offered}");
        }
        assert_eq!(Encoding::choose(["br", "gzip"].into_iter()), Gzip, "several headers are one list");
    }
}
