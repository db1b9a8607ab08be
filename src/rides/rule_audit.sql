SELECT r.id, 'ride ' || r.id AS item FROM rides r WHERE r.id > $1 ORDER BY r.id LIMIT $2
