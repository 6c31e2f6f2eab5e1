// Go's pgx over TLS: with_pgx N. TLS is Go's own; a batch sends many statements at once.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
)

const insertText = "INSERT INTO tls_capture (id, client, note) VALUES ($1, $2, $3)"

var background = context.Background()

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func insert(connection *pgx.Conn, name string, count int) {
	batch := &pgx.Batch{}
	for number := 0; number < count; number++ {
		_, err := connection.Exec(background, insertText, number, "pgx", fmt.Sprintf("pgx note %d of %s", number, name))
		check(err)
		batch.Queue(insertText, 1000+number, "pgx", fmt.Sprintf("batch %d of %s", number, name))
	}
	check(connection.SendBatch(background, batch).Close())
}

func read(connection *pgx.Conn, name string, count int) {
	for number := 0; number < 5; number++ {
		text := fmt.Sprintf("SELECT n, '%s row ' || n FROM generate_series(1, %d) AS n", name, 3000+number)
		rows, err := connection.Query(background, text)
		check(err)
		read := 0
		for rows.Next() {
			read++
		}
		check(rows.Err())
		if read != 3000+number {
			log.Fatalf("%d rows: %s", read, text)
		}
	}
	prepared := "pgx_" + name
	_, err := connection.Prepare(background, prepared, "SELECT $1::int + 1, 'pgx prepared'")
	check(err)
	for number := 0; number < count; number++ {
		var next int
		var text string
		check(connection.QueryRow(background, prepared, number).Scan(&next, &text))
	}
}

func copyRows(connection *pgx.Conn, name string) {
	rows := pgx.CopyFromSlice(3000, func(number int) ([]interface{}, error) {
		return []interface{}{100000 + number, "pgx", "copied by " + name}, nil
	})
	_, err := connection.CopyFrom(background, pgx.Identifier{"tls_capture"}, []string{"id", "client", "note"}, rows)
	check(err)
}

func large(connection *pgx.Conn, name string) {
	var body strings.Builder
	for number := 0; number < 128*1024; number++ {
		fmt.Fprintf(&body, "%s%06d,", name, number)
	}
	var length int
	check(connection.QueryRow(background, "SELECT length('"+body.String()+"')").Scan(&length))
	check(connection.QueryRow(background, "SELECT length($1::text)", body.String()).Scan(&length))
}

func fail(connection *pgx.Conn, name string) {
	_, err := connection.Exec(background, "SELECT 1/0 AS pgx_"+name)
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "22012" {
		log.Fatalf("divided by zero: %v", err)
	}
	transaction, err := connection.Begin(background)
	check(err)
	_, err = transaction.Exec(background, insertText, -1, "pgx", "rolled back by "+name)
	check(err)
	check(transaction.Rollback(background))
	var ignored string
	check(connection.QueryRow(background, "SELECT 'pgx after the rollback of "+name+"'").Scan(&ignored))
}

func session(name string, count int) {
	connection, err := pgx.Connect(background, "")
	check(err)
	insert(connection, name, count)
	read(connection, name, count)
	copyRows(connection, name)
	large(connection, name)
	fail(connection, name)
	check(connection.Close(background))
}

func main() {
	count, err := strconv.Atoi(os.Args[1])
	check(err)
	var sessions sync.WaitGroup
	for _, name := range []string{"a", "b"} {
		sessions.Add(1)
		go func(name string) {
			defer sessions.Done()
			session(name, count)
		}(name)
	}
	sessions.Wait()
}
