//! The ground floor: loops, products, random numbers and files of tensors. It uses no other module of this crate.
//!
//! [`kernels`], [`layers`] and [`matrix`] are the loops and products beneath the operations on the CPU. What [`random`] and [`dropout`]
//! give depends on a key alone.

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod dropout;
pub mod kernels;
pub(crate) mod layers;
pub mod matrix;
pub mod random;
pub(crate) mod softmax;
pub mod tensor_file;
pub(crate) mod vectorized;
