//! The parameters of a ride: four coordinates, parsed at the edge.

use serde::{Deserialize, Serialize};

use crate::endpoint::ParamError;

/// Origin and target, in degrees. Its JSON is the normal form in which two requests are compared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct RideParams {
    pub origin_lat: f64,
    pub origin_lon: f64,
    pub target_lat: f64,
    pub target_lon: f64,
}

impl RideParams {
    /// Reads the coordinates, in the order in which they are reported when wrong. `find` gives the text of a
    /// parameter, or `None` if it was not sent.
    pub fn parse(find: &dyn Fn(&str) -> Option<String>) -> Result<Self, ParamError> {
        let coordinate = |field, bound| match find(field) {
            Some(text) => parse_coordinate(&text, bound).map_err(|problem| ParamError { field, problem }),
            None => Err(ParamError { field, problem: "is missing".to_owned() }),
        };
        Ok(Self {
            origin_lat: coordinate("origin_lat", 90.0)?,
            origin_lon: coordinate("origin_lon", 180.0)?,
            target_lat: coordinate("target_lat", 90.0)?,
            target_lon: coordinate("target_lon", 180.0)?,
        })
    }
}

fn parse_coordinate(text: &str, bound: f64) -> Result<f64, String> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if !is_decimal(text.as_bytes()) {
        return Err("is not a decimal number, as in 37.7749".to_owned());
    }
    let value: f64 = text.parse().map_err(|_| "is not a decimal number, as in 37.7749".to_owned())?;
    if !(-bound..=bound).contains(&value) {
        return Err(format!("must be from -{bound} to {bound}"));
    }
    // Makes -0.0 the same as 0.0, because both are the same place.
    Ok(value + 0.0)
}

/// Returns whether it is a number as people write it. Rust's own parser would also take `inf`, `NaN` and `5.`.
fn is_decimal(text: &[u8]) -> bool {
    fn digits(text: &[u8]) -> (usize, &[u8]) {
        let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count, &text[count..])
    }
    fn unsigned(text: &[u8]) -> &[u8] {
        text.strip_prefix(b"+").or_else(|| text.strip_prefix(b"-")).unwrap_or(text)
    }
    let (whole, rest) = digits(unsigned(text));
    let (fraction, rest) = match rest.strip_prefix(b".") {
        Some(rest) => match digits(rest) {
            (0, _) => return false,
            found => found,
        },
        None => (0, rest),
    };
    if whole + fraction == 0 {
        return false;
    }
    match rest.strip_prefix(b"e").or_else(|| rest.strip_prefix(b"E")) {
        Some(exponent) => matches!(digits(unsigned(exponent)), (1.., [])),
        None => rest.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_write_them() {
        let long = format!("12.{}", "3".repeat(1000));
        for (text, value) in [
            ("0", 0.0_f64),
            ("1e1", 10.0),
            (" 1.0 ", 1.0),
            (".5", 0.5),
            ("+1", 1.0),
            ("017", 17.0),
            ("1e-400", 0.0),
            ("-0.0", 0.0),
            ("0e0", 0.0),
            ("-90", -90.0),
            ("9E1", 90.0),
            (&long, 12.333_333_333_333_334),
        ] {
            let parsed = parse_coordinate(text, 90.0).expect(text);
            assert_eq!(parsed.to_bits(), value.to_bits(), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "", " ", "NaN", "inf", "Infinity", "5.", "1e", "1e+", ".", "+", "0b11", "0x1A", "1_0", "1,5", "1\0",
            "--1",
        ] {
            assert!(parse_coordinate(text, 180.0).is_err(), "{text:?}");
        }
        assert_eq!(parse_coordinate("90.0000001", 90.0), Err("must be from -90 to 90".to_owned()));
        assert!(parse_coordinate("1e400", 180.0).is_err());
    }
}
