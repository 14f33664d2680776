//! etcd's messages, enums and services, in etcd's packages and with its field numbers.
//!
//! The .proto files stand in `proto/`; the types are generated from them at build time. Every `bytes` field is a
//! [`bytes::Bytes`]: a decoded message shares the buffer it was decoded from, so whoever keeps a key or a value
//! for long copies it first.
//!
//! `raftpb`, `walpb`, `snappb` and the log's metadata are proto2, and etcd writes their zero fields: set every
//! scalar to `Some`.
#![forbid(unsafe_code)]

pub mod ids;

/// Generated code carries the .proto comments or none.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod generated {
    pub mod authpb {
        include!(concat!(env!("OUT_DIR"), "/authpb.rs"));
    }
    pub mod etcdserverpb {
        include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
    }
    pub mod healthpb {
        include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
    }
    pub mod leasepb {
        include!(concat!(env!("OUT_DIR"), "/leasepb.rs"));
    }
    pub mod membershippb {
        include!(concat!(env!("OUT_DIR"), "/membershippb.rs"));
    }
    pub mod mvccpb {
        include!(concat!(env!("OUT_DIR"), "/mvccpb.rs"));
    }
    pub mod raftpb {
        include!(concat!(env!("OUT_DIR"), "/raftpb.rs"));
    }
    pub mod snappb {
        include!(concat!(env!("OUT_DIR"), "/snappb.rs"));
    }
    pub mod v3electionpb {
        include!(concat!(env!("OUT_DIR"), "/v3electionpb.rs"));
    }
    pub mod v3lockpb {
        include!(concat!(env!("OUT_DIR"), "/v3lockpb.rs"));
    }
    pub mod walpb {
        include!(concat!(env!("OUT_DIR"), "/walpb.rs"));
    }
}

pub use generated::*;

/// The compiled descriptors of every .proto file, as an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
