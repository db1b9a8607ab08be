//! What is where.

use std::sync::Arc;

use super::serve::Serves;

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// One of the operations, which take `POST`.
    Operation {
        /// Its place among them.
        place: usize,
        /// The number in the path.
        id: Option<i64>,
    },
    /// What takes `GET` and `HEAD`.
    Service(Service),
}

/// What the process says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Alive,
    Ready,
    Metrics,
}

const SERVICES: [(&str, Service); 3] =
    [("/healthz", Service::Alive), ("/readyz", Service::Ready), ("/metrics", Service::Metrics)];

/// What stands at this path, if anything.
pub(super) fn find(operations: &[Arc<dyn Serves>], path: &str) -> Option<Route> {
    let service = SERVICES.iter().find(|(at, _)| *at == path).map(|(_, service)| Route::Service(*service));
    service.or_else(|| {
        operations.iter().enumerate().find_map(|(place, operation)| {
            let id = matches(operation.path(), path)?;
            Some(Route::Operation { place, id })
        })
    })
}

impl Route {
    /// The path as metrics have it, without what differs from request to request.
    pub(super) fn label(self, operations: &[Arc<dyn Serves>]) -> &'static str {
        match self {
            Self::Operation { place, .. } => operations[place].path(),
            Self::Service(service) => {
                SERVICES.iter().find(|(_, known)| *known == service).map_or("", |(path, _)| path)
            }
        }
    }
}

/// Whether a path fits a pattern, and the number where that has `{id}`. A number has one spelling: without sign or leading
/// zero.
fn matches(pattern: &str, path: &str) -> Option<Option<i64>> {
    let Some((before, after)) = pattern.split_once("{id}") else { return (pattern == path).then_some(None) };
    let digits = path.strip_prefix(before)?.strip_suffix(after)?;
    let id: i64 = digits.parse().ok().filter(|id| *id > 0)?;
    (id.to_string() == digits).then_some(Some(id))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_number_has_one_spelling() {
        let refund = |path| matches("/rides/{id}/refund", path);
        assert_eq!(refund("/rides/17/refund"), Some(Some(17)));
        for path in [
            "/rides/0/refund",
            "/rides/+1/refund",
            "/rides/01/refund",
            "/rides/-1/refund",
            "/rides//refund",
            "/rides/1",
        ] {
            assert_eq!(refund(path), None, "{path}");
        }
        assert_eq!(refund("/rides/9223372036854775808/refund"), None);
        assert_eq!((matches("/rides", "/rides"), matches("/rides", "/rides/")), (Some(None), None));
    }
}
