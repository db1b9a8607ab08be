-- The shop's own tables; the library's stand beside them.
CREATE TABLE products (
    id    BIGINT PRIMARY KEY,
    price INT    NOT NULL CHECK (price > 0),
    stock INT    NOT NULL CHECK (stock >= 0)
);
CREATE TABLE orders (
    id         BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    key_id     BIGINT NOT NULL UNIQUE,
    product_id BIGINT NOT NULL REFERENCES products,
    payment    TEXT   UNIQUE,
    parcel     TEXT   UNIQUE
);
INSERT INTO products VALUES (1, 4900, 1000), (2, 900, 1);
