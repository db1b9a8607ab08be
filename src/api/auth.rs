//! Who is asking.

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use super::decode::single_header;
use super::error::{ApiError, Unauthenticated};
use crate::database::Database;
use crate::users::{self, User};

/// The user whose e-mail address stands in `Authorization`.
pub(super) async fn authenticate(database: &Database, headers: &HeaderMap) -> Result<User, ApiError> {
    let email = single_header(headers, &AUTHORIZATION)?;
    let email = match email.map(str::trim) {
        None | Some("") => return Err(ApiError::Unauthenticated(Unauthenticated::Missing)),
        Some(email) => email,
    };
    let user = users::find_by_email(database, email).await?;
    user.ok_or(ApiError::Unauthenticated(Unauthenticated::Unknown))
}
