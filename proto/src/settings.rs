//! The settings of the training stages. Each is declared once: its key in the job file, type, default, bounds and meaning.
//!
//! The job file is parsed to these types, a stage's key hashes them, a task carries them as JSON, and the trainer reads them.
//! The job file's reference is made from [`Key`].

mod align;
mod bounds;
mod embed;
mod instruct;

pub use align::{AlignSettings, Metric};
pub use bounds::{ABOVE_0, Bounds, Expect, FRACTION, Key, Number, at_least, between, fault};
pub use embed::{EmbedSettings, Pool, PooledTeacher, Teacher, TeacherLayer};
pub use instruct::{InstructArm, InstructMode, InstructSettings, TextParts};

/// Declares a section of the job file.
///
/// `result` has the settings that decide a stage's result. `run` has those that change only how it is computed: its speed, its
/// memory, its safety. A setting is `key: type = default, bounds;`, where the bounds may be left out.
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $about:literal])*
        pub struct $name:ident = $section:literal {
            $(result { $(
                $(#[doc = $doc:literal])* $(#[serde($($serde:tt)*)])?
                $key:ident: $kind:ty = $default:expr $(, $bounds:expr)?;
            )* })?
            $(run { $(
                $(#[doc = $run_doc:literal])* $(#[serde($($run_serde:tt)*)])?
                $run_key:ident: $run_kind:ty = $run_default:expr $(, $run_bounds:expr)?;
            )* })?
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($($(#[doc = $doc])* $(#[serde($($serde)*)])? pub $key: $kind,)*)?
            $($($(#[doc = $run_doc])* $(#[serde($($run_serde)*)])? pub $run_key: $run_kind,)*)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($($key: $default,)*)? $($($run_key: $run_default,)*)? }
            }
        }

        impl $name {
            /// The meaning of the section.
            pub const ABOUT: &'static str = concat!($($about, "\n"),*);
            /// The keys of the section, in order.
            pub const KEYS: &'static [$crate::settings::Key] = &[
                $($($crate::settings::Key {
                    name: stringify!($key), meaning: concat!($($doc, "\n"),*), bounds: &[$($bounds)?],
                },)*)?
                $($($crate::settings::Key {
                    name: stringify!($run_key), meaning: concat!($($run_doc, "\n"),*), bounds: &[$($run_bounds)?],
                },)*)?
            ];

            /// Reports the numbers that are out of their bounds.
            pub fn check_bounds(&self, expect: $crate::settings::Expect<'_>) {
                $($($($bounds.check(concat!($section, ".", stringify!($key)), self.$key, expect);)?)*)?
                $($($($run_bounds.check(concat!($section, ".", stringify!($run_key)), self.$run_key, expect);)?)*)?
            }
        }

        $(impl $name {
            /// Returns the settings with the defaults in place of those that do not decide the result.
            #[must_use]
            pub fn deciding(&self) -> Self {
                let mut deciding = self.clone();
                $(deciding.$run_key = $run_default;)*
                deciding
            }
        })?
    };
}

/// An absent number is written as 0, in the job file and everywhere else.
pub mod zero {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<T: Serialize + Default + Copy, S: Serializer>(
        value: &Option<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.unwrap_or_default().serialize(to)
    }

    /// # Errors
    /// When there is no number of the right type.
    pub fn deserialize<'de, T: Deserialize<'de> + Default + PartialEq, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        T::deserialize(from).map(|value| (value != T::default()).then_some(value))
    }
}
