//! Flipped bytes: right data or an error that names the place.
