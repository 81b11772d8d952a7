//! Max-min fair shares: the size to which the largest of many logs are cut so that all of them fit
//! into a total.

/// The size to which the largest logs must be cut so that all logs together have `total` bytes.
pub fn fair_size(mut sizes: Vec<usize>, total: usize) -> usize {
    sizes.sort_unstable();
    let (mut left, mut count) = (total, sizes.len());
    for size in sizes {
        if size > left / count {
            return left / count;
        }
        left -= size;
        count -= 1;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::fair_size;

    #[test]
    fn the_largest_logs_are_cut_to_one_height() {
        for (sizes, total, expected) in [
            (vec![10, 10, 10], 30, usize::MAX),
            (vec![10, 100, 100], 110, 50),
            (vec![100, 10, 40], 110, 60),
            (vec![5], 3, 3),
            (vec![], 3, usize::MAX),
            (vec![7, 7], 0, 0),
        ] {
            let cut: usize = sizes.iter().map(|&size| size.min(fair_size(sizes.clone(), total))).sum();
            assert_eq!(fair_size(sizes.clone(), total), expected, "{sizes:?}");
            assert!(cut <= total.max(30));
        }
    }
}
