//! Gives the Parquet reader the parts of an object that it asks for.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use crate::Error;
use crate::page_headers::flaw;
use crate::store::Store;

/// An object of which only the needed parts are fetched.
pub(crate) struct ObjectReader {
    pub store: Store,
    /// Path relative to the store.
    pub path: String,
    pub location: Path,
    pub bytes: u64,
}

impl ObjectReader {
    fn failed(&self, error: object_store::Error) -> ParquetError {
        let error = match error {
            object_store::Error::NotSupported { .. } => Error::Content {
                path: self.store.describe(&self.path),
                reason: "its server gives no parts of a file, and Parquet is read in parts; download it first"
                    .to_owned(),
            },
            error => self.store.failed(&self.path, error),
        };
        ParquetError::External(Box::new(error))
    }
}

impl AsyncFileReader for ObjectReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        async move {
            let part = self.store.objects().get_range(&self.location, range).await;
            part.map_err(|e| self.failed(e))
        }
        .boxed()
    }

    /// Reads pages of columns. A page that would need too much memory is refused before it is decoded.
    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        async move {
            let pages = self.store.objects().get_ranges(&self.location, &ranges).await;
            let pages = pages.map_err(|e| self.failed(e))?;
            match pages.iter().find_map(|pages| flaw(pages)) {
                Some(flaw) => Err(ParquetError::General(flaw)),
                None => Ok(pages),
            }
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        async move {
            let size = self.bytes;
            let reader = ParquetMetaDataReader::new().with_arrow_reader_options(options);
            Ok(Arc::new(reader.load_and_finish(self, size).await?))
        }
        .boxed()
    }
}
