-- What one insert brings is written as a compact part, all columns in one file. As a wide part it makes three files a column, and
-- to make and remove them costs ClickHouse more than the rows while an archiver catches up. Merges make wide parts of them, of
-- which a question reads the columns that it names and nothing else.
ALTER TABLE `@database@`.events MODIFY SETTING min_bytes_for_wide_part = 67108864;
