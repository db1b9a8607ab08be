//! What a client may use as an idempotency key.

/// A key of 20 to 100 characters: long enough not to be guessed or repeated by accident, short enough to index.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(String);

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It has fewer characters than a key must have.
    #[error("is too short: {length} of at least {} characters; a random UUID is a good key", IdempotencyKey::MIN)]
    TooShort {
        /// Characters that it has.
        length: usize,
    },
    /// It has more characters than a key may have.
    #[error("is too long: {length} of at most {} characters", IdempotencyKey::MAX)]
    TooLong {
        /// Characters that it has.
        length: usize,
    },
    /// It holds a character that is not safe in logs, shells and databases.
    #[error("may only hold visible ASCII characters and spaces")]
    Invisible,
}

impl IdempotencyKey {
    const MIN: usize = 20;
    const MAX: usize = 100;

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for IdempotencyKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if !text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return Err(KeyError::Invisible);
        }
        match text.len() {
            length if length < Self::MIN => Err(KeyError::TooShort { length }),
            length if length > Self::MAX => Err(KeyError::TooLong { length }),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive() {
        let parse = |length: usize| "k".repeat(length).parse::<IdempotencyKey>().map(|key| key.as_str().len());
        assert_eq!(parse(19), Err(KeyError::TooShort { length: 19 }));
        assert_eq!(parse(20), Ok(20));
        assert_eq!(parse(100), Ok(100));
        assert_eq!(parse(101), Err(KeyError::TooLong { length: 101 }));
        assert_eq!("schlüssel-schlüssel-schlüssel".parse::<IdempotencyKey>(), Err(KeyError::Invisible));
    }
}
