//! What the log says of an RPC beside its name: the object it is about.

use tracing::Span;

/// Fills in a field of the RPC's span: `pod`, `sandbox`, `container` or `image`.
pub(super) fn record(field: &'static str, value: &(impl ToString + ?Sized)) {
    Span::current().record(field, value.to_string());
}
