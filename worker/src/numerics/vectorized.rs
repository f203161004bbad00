//! A macro that compiles loops twice, for any processor and for one with AVX2. The processor decides at run time.

/// Defines functions whose loops use 256-bit vectors where the processor has them. They have no fused multiply-add and
/// sum over a fixed number of lanes, so both forms give the same bits.
///
/// Functions that a body calls are compiled this way only when they are inlined. Mark them `#[inline(always)]`, and
/// keep closures small.
macro_rules! vectorized {
    ($($(#[$meta:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $visibility fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($argument: $type),*) $(-> $result)? {
                    body($($argument),*)
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has the features that the function is compiled for.
                    return unsafe { wide($($argument),*) };
                }
            }
            body($($argument),*)
        }
    )*};
}

pub(crate) use vectorized;
