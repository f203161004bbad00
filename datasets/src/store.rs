//! One store for every place: local disk, memory, S3, GCS, Azure, HTTP.
