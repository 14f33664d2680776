//! Request handlers, free of any transport.
