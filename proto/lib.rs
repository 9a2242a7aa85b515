//! The CRI v1 API of Kubernetes 1.37, generated from `api.proto`.

mod generated {
    tonic::include_proto!("runtime.v1");
}

pub use generated::*;
