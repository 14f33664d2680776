//! gRPC on h2.
